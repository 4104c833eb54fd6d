"""The protocols: what is trained on, what is evaluated, and which metrics are in the table.

A protocol is an entry of `PROTOCOLS`; its functions see one block of a suite and one data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from apd.attacks.threat import Norm, format_eps, parse_eps
from apd.errors import InputError

if TYPE_CHECKING:
    from apd.bench.blocks import Block
    from apd.data.settings import Which

WORST = "worst"


@dataclass(frozen=True)
class EvalSpec:
    """One evaluation of a trained classifier.

    Args:
        name: unique in its table.
        split: its name in the results.
        data: name of the data set in the suite.
        eps: budget in [0,1] pixel units, as text.
        attacks: all but clean.
        limit: number of images; None for all.
        classes: which of the data set's classes.
        corruption: ``KIND:SEVERITY``, applied before any attack.
        names: ``own``: the prompts serve this data set's class names and templates; ``kept``: its class names with the
            training templates, because they are the same classes.
        norm: the one that ``eps`` is measured in.
        of: the data set's split whose images these are, ``test`` or ``val``; an older plan has it in ``split`` alone.
    """

    name: str
    split: str
    data: str
    eps: str
    attacks: tuple[str, ...]
    limit: int | None
    classes: Which = "all"
    corruption: str | None = None
    names: Literal["own", "kept"] = "own"
    norm: Norm = "linf"
    of: str = field(default="test", compare=False)

    @property
    def images(self) -> str:
        """How many images of which split, as people say it."""
        of = "validation images" if self.of == "val" or self.split.startswith("val") else "test images"
        return f"all {of}" if self.limit is None else f"at most {self.limit} {of}"

    @property
    def budget(self) -> str:
        """The budget as people write it; the norm stands before it unless it is Linf."""
        text = format_eps(parse_eps(self.eps, self.norm), self.norm)
        return text if self.norm == "linf" else f"{self.norm} {text}"

    def record(self) -> dict[str, Any]:
        """Everything as a dictionary; what plans did not have at first, only where it is not what it was."""
        return {
            key: value for key, value in asdict(self).items() if (key, value) not in (("norm", "linf"), ("of", "test"))
        }


@dataclass(frozen=True)
class Metric:
    """A column: accuracy of one (evaluation, attack), or the harmonic or arithmetic mean of several.

    ``main`` columns rank the methods and carry the paired intervals.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    mean: Literal["harmonic", "arithmetic"] = "harmonic"
    main: bool = False


@dataclass(frozen=True)
class Protocol:
    """How a protocol expands.

    Args:
        summary: one line.
        evals: makes the evaluations of each run, from a block and a template.
        metrics: makes the columns of a table, from its evaluations.
        train_classes: which classes are trained on.
        needs: the setting that a block must have.
        curve: the x-axis of its plot.
        new_classes: whether classes are evaluated that were not trained: all classes then share one text context, unless a row
            says otherwise.
    """

    summary: str
    evals: Callable[[Block, EvalSpec], list[EvalSpec]]
    metrics: Callable[[Sequence[EvalSpec]], list[Metric]]
    train_classes: Which = "all"
    needs: str | None = None
    curve: Literal["shots", "eps"] | None = None
    new_classes: bool = False

    def check(self, block: Block) -> None:
        """Raise an `InputError` if the block lacks what the protocol needs, or sets what belongs to another."""
        if self.needs == "to" and any(set(block.to) == {name} for name in block.data):
            raise InputError(
                f"a block of protocol {block.protocol} trains on {block.to[0]!r} and has no other data set in 'to'; add one."
            )
        own = {"to", "eps", "corruptions"}
        for name in own:
            if name == self.needs and not getattr(block, name):
                raise InputError(f"a block of protocol {block.protocol} needs the setting {name!r}.")
            if name != self.needs and getattr(block, name):
                raise InputError(f"the setting {name!r} does not belong to protocol {block.protocol}.")
        if block.unlabelled is not None and self.curve != "shots":
            raise InputError(f"the setting 'unlabelled' does not belong to protocol {block.protocol}.")
        if "severity" in block.model_fields_set and self.needs != "corruptions":
            raise InputError(f"the setting 'severity' does not belong to protocol {block.protocol}.")


def _same(block: Block, spec: EvalSpec) -> list[EvalSpec]:
    return [spec]


def _base_new(block: Block, spec: EvalSpec) -> list[EvalSpec]:
    return [
        replace(spec, name="base", split="base", classes="base"),
        replace(spec, name="new", split="new", classes="new"),
    ]


def _targets(names: Literal["own", "kept"]) -> Callable[[Block, EvalSpec], list[EvalSpec]]:
    def evals(block: Block, spec: EvalSpec) -> list[EvalSpec]:
        others = [to for to in dict.fromkeys(block.to) if to != spec.data]
        return [spec, *(replace(spec, name=to, split=to, data=to, names=names) for to in others)]

    return evals


def _budgets(block: Block, spec: EvalSpec) -> list[EvalSpec]:
    budgets: dict[str, EvalSpec] = {}
    for eps in block.eps:  # one budget written in two ways is one
        found = replace(spec, eps=eps)
        budgets.setdefault(found.budget, found)
    return [replace(found, name=f"eps {budget}") for budget, found in budgets.items()]


def _corrupted(block: Block, spec: EvalSpec) -> list[EvalSpec]:
    names = {f"{kind}-{block.severity}": f"{kind}:{block.severity}" for kind in block.corruptions}
    return [spec, *(replace(spec, name=name, split=name, corruption=kind) for name, kind in names.items())]


def _plain(evals: Sequence[EvalSpec]) -> list[Metric]:
    """Clean, each attack, the worst of several, and the harmonic mean of clean and worst."""
    spec = evals[0]
    names = list(dict.fromkeys(("clean", *spec.attacks)))
    if names == ["clean"]:
        return [Metric("clean", ((spec.name, "clean"),), main=True)]
    mean = Metric("harmonic mean", ((spec.name, "clean"), (spec.name, WORST)), main=True)
    last = names.pop() if len(names) == 2 else WORST  # the worst of one attack is that attack
    return [
        *(Metric(name, ((spec.name, name),)) for name in names),
        Metric(last, ((spec.name, last),), main=True),
        mean,
    ]


def _base_new_metrics(evals: Sequence[EvalSpec]) -> list[Metric]:
    columns = [Metric(f"{v.name} {attack}", ((v.name, attack),)) for v in evals for attack in ("clean", WORST)]
    clean, robust = (tuple((spec.name, attack) for spec in evals) for attack in ("clean", WORST))
    return [*columns, Metric("H clean", clean), Metric("H worst", robust, main=True)]


def _each(evals: Sequence[EvalSpec]) -> list[Metric]:
    """Clean and worst of every evaluation, and their means over all but the first, which training has seen."""
    columns = [Metric(f"{v.name} {attack}", ((v.name, attack),)) for v in evals for attack in ("clean", WORST)]
    others = evals[1:]
    clean, robust = (tuple((spec.name, attack) for spec in others) for attack in ("clean", WORST))
    return [
        *columns,
        Metric("mean clean", clean, "arithmetic"),
        Metric("mean worst", robust, "arithmetic", main=True),
    ]


def _curve(evals: Sequence[EvalSpec]) -> list[Metric]:
    """Clean once, then the worst at each budget and their mean."""
    columns = [Metric(spec.name, ((spec.name, WORST),)) for spec in evals]
    mean = Metric("mean worst", tuple((spec.name, WORST) for spec in evals), "arithmetic", main=True)
    return [Metric("clean", ((evals[0].name, "clean"),)), *columns, mean]


PROTOCOLS: dict[str, Protocol] = {
    "few-shot": Protocol("train on k images per class, evaluate on other images", _same, _plain, curve="shots"),
    "base-to-new": Protocol(
        "train on the first half of the classes, evaluate on both halves (CoCoOp, arXiv 2203.05557)",
        _base_new,
        _base_new_metrics,
        train_classes="base",
        new_classes=True,
    ),
    "cross-dataset": Protocol(
        "train on one data set, evaluate on others without tuning",
        _targets("own"),
        _each,
        needs="to",
        new_classes=True,
    ),
    "domain-shift": Protocol(
        "train on one data set, evaluate on the same classes elsewhere", _targets("kept"), _each, needs="to"
    ),
    "eps-curve": Protocol("one training, attacked within several budgets", _budgets, _curve, needs="eps", curve="eps"),
    "corruption": Protocol(
        "common corruptions of the test images, clean and under attack", _corrupted, _each, needs="corruptions"
    ),
    "teacher-study": Protocol("the same as few-shot, for variants of one method", _same, _plain),
}
"""The protocols by name."""
