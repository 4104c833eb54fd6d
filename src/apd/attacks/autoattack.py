"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690) and its parts, through the library `pyautoattack`.

``standard``: APGD-CE (one restart, 100 iterations), targeted APGD-DLR and targeted FAB on the 9 likeliest wrong
classes, Square with 5,000 queries. With fewer classes than ten all wrong classes are targets. Targeted DLR needs four
classes, so with two or three: APGD-CE, APGD on the margin, untargeted FAB, Square.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Watch, answers
from apd.attacks.objectives import margin
from apd.attacks.threat import ThreatModel
from apd.util.seeds import own_random_numbers

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

BLACK_BOX = "square"
"""The part that asks for answers only."""

FLAGS = {
    "randomized defense": "randomized",
    "probability distribution": "probabilities",
    "dynamic defense": "dynamic",
    "zero gradient": "zero gradient",
}
"""A part of the library's warning to the flag's name."""


def stages(name: str, n_classes: int) -> tuple[str, ...]:
    """The attacks that ``name`` runs for ``n_classes`` classes, in order.

    >>> stages("autoattack", 100)
    ('apgd-ce', 'apgd-t', 'fab-t', 'square')
    >>> stages("autoattack", 2)
    ('apgd-ce', 'apgd-margin', 'fab', 'square')
    """
    if name == "autoattack":
        few = n_classes < 4
        return ("apgd-ce", "apgd-margin", "fab", "square") if few else ("apgd-ce", "apgd-t", "fab-t", "square")
    if name == "apgd-dlr" and n_classes < 3:
        return ("apgd-margin",)  # DLR divides by the distance to the third logit
    return (name,)


def most_passes(stage: str, n_classes: int) -> int:
    """Passes of the model in one stage, where no sample falls; one with a gradient counts twice.

    Of the library's version ``standard`` for Linf and L2; for L1, whose APGD-CE has five starts and whose APGD-T five targets, it
    is an estimate. Two of them are looks at the images, before the stage and after it.

    >>> most_passes("apgd-ce", 10), most_passes("square", 10)
    (204, 5004)
    """
    targets = min(9, n_classes - 1)
    apgd, fab = 2 * (1 + 100), 2 + 3 * 100 + 1
    most = {"apgd-t": targets * (1 + apgd), "fab": fab - 1, "fab-t": targets * fab, "square": 1 + 5000 + 1}
    return 2 + most.get(stage, apgd)


@dataclass(frozen=True)
class LibraryAttack(EvaluationAttack):
    """AutoAttack, or one of its parts, as an evaluation attack.

    The stages run one after the other, each on the samples that still stand. The library draws its random numbers for a
    whole batch from one seed, so results depend (slightly) on the batch; the global generators are left as they were.

    Args:
        name: ``autoattack``, or one of its parts: ``apgd-ce``, ``apgd-dlr``, ``fab``, ``square``.
        followed: whether another attack follows, so that its last part is kept like the others.
    """

    name: str
    followed: bool = False

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for gradients: all but Square do."""
        return self.name != BLACK_BOX

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """The attacks it is made of, for ``n_classes`` classes."""
        return stages(self.name, n_classes)

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Passes of the model on a batch in each part, if no sample falls; one with a gradient counts twice."""
        checks = 7 if self.name == "autoattack" else 0  # `_check_defence`
        first, *others = (most_passes(stage, n_classes) for stage in self.runs(n_classes))
        return (1 + checks + first, *others)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` stage by stage."""
        found, by = batch.x.clone(), [""] * len(batch)
        robust = torch.arange(len(batch), device=batch.x.device)
        with own_random_numbers(batch.x.device), _flags() as flags, torch.no_grad():
            one = model(batch.x[:1])
            n_classes, model = one.shape[-1], _Normal(model) if one.is_inference() else model
            library = _standard(model, threat, n_classes, batch.seed, batch.x.device)
            if self.name == "autoattack" and not watch.done:
                _check_defence(model, batch.x, batch.labels)
            seen, parts = Counter[str](), self.runs(n_classes)
            for stage in parts:
                if len(robust) == 0:
                    break
                if stage in watch.done:
                    continue
                watch.begin(stage)
                left = batch.select(robust)
                images = threat.project(_STAGES[stage](library, left.x, left.labels), left.x)
                found[robust] = images
                for i in robust.tolist():
                    by[i] = stage
                predicted = answers(model, images)
                if self.followed or stage != parts[-1]:
                    watch.end(stage, left.ids, predicted, flags - seen)
                    seen = Counter(flags)
                robust = robust[predicted == left.labels]
        return Found(found, by, flags)


class _Normal(nn.Module):
    """A model that answers in inference mode, with answers that may be changed: the library writes into them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B,C)."""
        z: Tensor = self.model(x)
        return z.clone()


def _standard(model: nn.Module, threat: ThreatModel, n_classes: int, seed: int, device: torch.device) -> AutoAttack:
    """The library's parts with the settings of its version ``standard``, targets as the classes allow."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    library = AutoAttack(model, norm=norm, eps=threat.eps, seed=seed, version="standard", device=device)
    for part in (library.apgd_targeted, library.fab):  # for L1 the library has fewer targets and more restarts
        part.n_target_classes = min(part.n_target_classes, n_classes - 1)
    for part in (library.apgd, library.apgd_targeted, library.fab, library.square):
        part.seed = seed
    return library


def _apgd(loss: str) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def run(library: Any, x: Tensor, labels: Tensor) -> Tensor:
        library.apgd.loss = loss
        images: Tensor = library.apgd.perturb(x, labels)
        return images

    return run


def _apgd_margin(library: Any, x: Tensor, labels: Tensor) -> Tensor:
    from pyautoattack.autopgd_base import APGDAttack

    class APGDMargin(APGDAttack):  # type: ignore[misc,unused-ignore]
        """APGD on the margin: DLR without its divisor, which two or three classes do not have."""

        def dlr_loss(self, z: Tensor, y: Tensor) -> Tensor:
            return margin(z, y)

    part = library.apgd
    attack = APGDMargin(
        part.model, norm=part.norm, eps=part.eps, seed=part.seed, loss="dlr", device=part.device, logger=part.logger
    )
    attack.use_largereps, attack.n_restarts = part.use_largereps, part.n_restarts
    images: Tensor = attack.perturb(x, labels)
    return images


def _fab(targeted: bool) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def run(library: Any, x: Tensor, labels: Tensor) -> Tensor:
        library.fab.targeted = targeted
        images: Tensor = library.fab.perturb(x, labels)
        return images

    return run


_STAGES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "apgd-ce": _apgd("ce"),
    "apgd-dlr": _apgd("dlr"),
    "apgd-margin": _apgd_margin,
    "apgd-t": lambda library, x, labels: library.apgd_targeted.perturb(x, labels),
    "fab": _fab(targeted=False),
    "fab-t": _fab(targeted=True),
    "square": lambda library, x, labels: library.square.perturb(x, labels),
}


def _check_defence(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    """The library's own checks for defences that it cannot judge; they warn, and `_flags` listens."""
    from pyautoattack import checks

    logger = logging.getLogger("auto-attack")
    checks.check_randomized(model, x, labels, bs=len(x), logger=logger)
    checks.check_range_output(model, x, logger=logger)
    # This check counts calls in a table of the whole process, through the interpreter's one tracer.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    tracer = sys.gettrace()
    try:
        checks.check_dynamic(model, x, logger=logger)
    finally:
        sys.settrace(tracer)


@contextmanager
def _flags() -> Iterator[Counter[str]]:
    """Collect the library's warnings by name instead of printing them."""
    flags: Counter[str] = Counter()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            flags[next((name for part, name in FLAGS.items() if part in message), message)] += 1

    logger, listener = logging.getLogger("auto-attack"), Listener(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield flags
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate
