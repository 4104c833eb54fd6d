"""Attacks handed our classifier, beside the same attacks from public libraries on plainly written classifiers.

Reference: a classifier that runs the text tower at full length in every forward pass, on torch's default kernels. Floor: one
that keeps its class features, on the kernels that ours uses. AutoAttack and its parts come from `pyautoattack` on all sides,
PGD from foolbox on the others.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apd
from apd.attacks import AttackBatch, find
from apd.attacks.threat import ThreatModel, parse_eps
from apd.bench.estimate import NOT_FOOLED, attack_passes
from apd.data.dataset import Decoded
from apd.evaluation import evaluate_tensors, parse_settings
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import CONTEXT, GEOMETRIES, class_names
from benchmarks.measure import Side, compared, interleaved, take_turns
from benchmarks.towers import Towers


class Plain(nn.Module):
    """A prompted CLIP from pixels to logits, written plainly.

    Args:
        classifier: whose prompts and classes it has; prompts are fixed.
        towers: of the same CLIP.
        keep: compute class features once; else in every forward pass, at full length.
    """

    def __init__(self, classifier: apd.PromptedCLIP, towers: Towers, keep: bool) -> None:
        super().__init__()
        encoder, prompts = classifier.encoder, classifier.prompts
        assert prompts is not None
        self.towers, self.keep, self.scale = towers, keep, encoder.info.logit_scale
        tail = classifier.templates[0].split("{}", 1)[1]
        self.ids = encoder.prompt_ids([f"{n}{tail}" for n in classifier.class_names], prompts.spec.text_tokens)
        with torch.no_grad():
            self.text, self.visual = ([t.clone() for t in branch] for branch in (prompts.text(), prompts.visual()))
            self.kept = self._classes()

    def _classes(self) -> Tensor:
        return F.normalize(self.towers.text(self.ids, self.text), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images (B,3,S,S) in [0,1]."""
        with torch.no_grad():
            classes = self.kept if self.keep else self._classes()
        return self.scale * F.normalize(self.towers.image(x, self.visual), dim=-1) @ classes.T


def twins(classifier: apd.PromptedCLIP, towers: Towers) -> dict[str, Plain]:
    """The sides that stand beside ours: what they keep, and on which kernels."""
    fast = towers.on_our_kernels(classifier.encoder)
    made = {
        "reference": Plain(classifier, towers, keep=False),
        "reference_our_kernels": Plain(classifier, fast, keep=False),
        "floor": Plain(classifier, fast, keep=True),
        "floor_default_kernels": Plain(classifier, towers, keep=True),
    }
    return {name: twin.eval() for name, twin in made.items()}


@dataclass(frozen=True)
class Subject:
    """A classifier with prompts tuned for a moment, its plain twins, and held-out images."""

    classifier: apd.PromptedCLIP
    twins: Mapping[str, Plain]
    images: Decoded
    eps: str

    def part(self, number: int, parts: int) -> Subject:
        """Every ``parts``-th image, from ``number`` on."""
        images = self.images
        some = Decoded(images.images[number::parts], images.labels[number::parts], images.ids[number::parts])
        return Subject(self.classifier, self.twins, some, self.eps)


@cache
def subject(options: Options, limit: int) -> Subject:
    """Digits on the embedded CLIP at 8/255, or cifar10 on the testbed's at 2/255."""
    if options.testbed is None:
        folder, images, eps = Path(str(files("apd") / "assets" / "glyphs")), "digits", "8/255"
    else:
        folder, images, eps = options.testbed / "clip", str(options.testbed / "data" / "cifar10"), "2/255"
    encoder = apd.load_clip(folder, device=options.device)
    data = apd.load_data(images, shots=4)
    with tempfile.TemporaryDirectory() as place:
        tuning: dict[str, Any] = {"epochs": 5, "device": str(options.device), "validate_every": 5}
        run = apd.train(encoder, data, method="advvlp", eps=eps, output=Path(place) / "run", **tuning)
        classifier = apd.load_run(run.path, device=options.device)
    beside = twins(classifier, Towers.load(folder, classifier.encoder))
    decoded = data.test.sample(limit, 0).decode(encoder.info.preprocessing)
    same_logits(classifier, beside, decoded.pixels(slice(0, 4)).to(options.device))
    return Subject(classifier, beside, decoded, eps)


def same_logits(classifier: apd.PromptedCLIP, beside: Mapping[str, Plain], x: Tensor) -> None:
    """Make sure that all sides attack the same function."""
    with torch.no_grad():
        for twin in beside.values():
            torch.testing.assert_close(twin(x), classifier(x), rtol=1e-4, atol=1e-3)


Robust = Callable[[], Tensor]
"""Runs an attack; which of the images (N,) still get their label."""


def ours(s: Subject, attack: str) -> Robust:
    """`apd`'s evaluation."""
    settings = parse_settings(
        {"attacks": attack, "eps": s.eps, "batch_size": len(s.images), "checks": False, "quiet": True}
    )
    names = s.classifier.class_names
    return lambda: evaluate_tensors(s.classifier, s.images, names, settings).robust_mask()


def theirs(s: Subject, attack: str, model: nn.Module, device: torch.device) -> Robust:
    """The library's attack on ``model``, on images that it classifies correctly."""
    x, y, eps = s.images.pixels().to(device), s.images.labels.to(device), parse_eps(s.eps)

    def run() -> Tensor:
        with torch.no_grad():
            right = model(x).argmax(1) == y
        x_adv = x.clone()
        if attack.startswith("pgd-"):
            x_adv[right] = foolbox_pgd(model, x[right], y[right], eps, int(attack.removeprefix("pgd-")))
        else:
            x_adv[right] = pyautoattack(model, x[right], y[right], eps, attack)
        with torch.no_grad():
            return (right & (model(x_adv).argmax(1) == y)).cpu()

    return run


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """PGD on the cross-entropy with steps of eps/4 from a random start."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=eps / 4, random_start=True)
    _, found, _ = attack(wrapped, x, y, epsilons=eps)
    images: Tensor = found
    return images


def pyautoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, attack: str) -> Tensor:
    """AutoAttack as it comes, or one of its parts with one restart, as its standard version runs it."""
    from pyautoattack import AutoAttack

    parts: dict[str, Any] = {} if attack == "autoattack" else {"version": "custom", "attacks": [attack]}
    library = AutoAttack(model, norm="Linf", eps=eps, seed=0, device=x.device, **parts)
    library.apgd.n_restarts = 1
    tracer = sys.gettrace()  # the library's check for dynamic models takes it away
    x_adv, _ = library.run_standard_evaluation(x, y, batch_size=len(x))
    sys.settrace(tracer)
    images: Tensor = x_adv
    return images


def agreement(mine: Tensor, floor: Tensor) -> dict[str, Any]:
    """How many samples two attacks judge differently, and whether ours calls significantly more of them robust.

    ``p_more_robust``: one-sided sign test of the samples on which they differ.
    """
    more, less = int((mine & ~floor).sum()), int((floor & ~mine).sum())
    p = sum(math.comb(more + less, k) for k in range(more, more + less + 1)) / 2 ** (more + less)
    return {
        "robust_ours": float(mine.float().mean()),
        "robust_floor": float(floor.float().mean()),
        "disagreement": (more + less) / len(mine),
        "p_more_robust": p,
    }


def attack_case(options: Options, attack: str, limit: int, rounds: int, parts: int = 1) -> Case:
    """The row of one attack on images of a real data set.

    Args:
        options: of the run.
        attack: its name.
        limit: how many images.
        rounds: at most.
        parts: in which the images come, one a round and all of them once; seconds are then those of all parts together, and
            no classifier recomputes its class features. For attacks that take minutes.
    """
    data = "digits" if options.testbed is None else "cifar10"
    names = ["ours", "floor"] + ([] if parts > 1 else ["floor_default_kernels", "reference"])
    rounds = max(rounds, parts)
    passes = attack_passes(attack, n_classes=10) * (1 if attack.startswith("pgd-") else NOT_FOOLED)
    gflop = limit / parts * passes * 2 * GEOMETRIES["small"].image_gflop()
    sides = {name: Side(gflop, rounds, own_kernels=name in ("ours", "floor")) for name in names}

    def measure() -> Row:
        whole = subject(options, limit)
        subjects = [whole.part(number, parts) for number in range(parts)]
        robust: dict[str, list[Tensor]] = {name: [] for name in names}

        def in_turn(name: str) -> Callable[[], None]:
            def run() -> None:
                s = subjects[len(robust[name]) % parts]
                attacked = ours(s, attack) if name == "ours" else theirs(s, attack, s.twins[name], options.device)
                robust[name].append(attacked())

            return run

        functions = {name: in_turn(name) for name in names}
        if parts == 1:
            times = take_turns(functions, sides, options.device)
            return compared(times) | agreement(robust["ours"][0], robust["floor"][0])
        times = interleaved(functions, dict.fromkeys(names, parts), options.device)
        row = compared(times) | {f"{name}_s": sum(times[name]) for name in names}
        return row | agreement(torch.cat(robust["ours"]), torch.cat(robust["floor"]))

    about = {"attack": attack, "data": data, "images": limit, "parts": parts}
    return Case(f"{attack}-{data}-n{limit}", about, measure, sides, seconds=15)


def steady_case(options: Options, geometry: str, batch: int, classes: int, rounds: tuple[int, int]) -> Case:
    """PGD-10 in which no sample falls: labels are the predictions, and the ball is too small to change one.

    Args:
        options: of the run.
        geometry, batch, classes: sizes.
        rounds: of ours and the floor, and of the classifier that recomputes, at most.
    """
    shape = GEOMETRIES[geometry]
    image, text = 21 * batch * shape.image_gflop(), 11 * classes * shape.text_gflop(CONTEXT)
    sides = {
        "ours": Side(image, rounds[0], warm=1),
        "floor": Side(image, rounds[0], warm=1),
        "floor_default_kernels": Side(image, rounds[0], own_kernels=False),
        "reference": Side(image + text, rounds[1], own_kernels=False),
        "reference_our_kernels": Side(image + text, 1),
    }

    def measure() -> Row:
        encoder, towers = options.load(geometry)
        spec = apd.PromptSpec(text_tokens=2, visual_tokens=2)
        prompts = apd.models.prompts.Prompts.initial(spec, encoder).requires_grad_(False)
        classifier = apd.PromptedCLIP(encoder, prompts, class_names(classes))
        size = shape.image_size
        x = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(options.device)
        beside = twins(classifier, towers)
        same_logits(classifier, beside, x)
        frozen, eps = classifier.frozen(), 1e-7
        with torch.no_grad():
            y = frozen(x).argmax(1)
        ids = [str(i) for i in range(batch)]
        functions: dict[str, Callable[[], Any]] = {
            name: lambda twin=twin: foolbox_pgd(twin, x, y, eps, 10) for name, twin in beside.items()
        }
        functions["ours"] = lambda: find("pgd-10")(frozen, AttackBatch(x, y, ids), ThreatModel(eps))
        return compared(take_turns({name: functions[name] for name in sides}, sides, options.device))

    about = {"attack": "pgd-10", "geometry": geometry, "batch": batch, "classes": classes}
    return Case(f"pgd-10-{geometry}-b{batch}-c{classes}", about, measure, sides)


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite; AutoAttack takes thousands of passes for every image that stands, too many to be quick."""
    if options.quick:
        yield from (attack_case(options, attack, 16, 1) for attack in ("pgd-100", "apgd-ce"))
        yield steady_case(options, "mini", 4, 100, (1, 1))
        return
    yield attack_case(options, "autoattack", 100, 1, parts=2)
    yield from (steady_case(options, options.geometry, batch, 100, (5, 1)) for batch in (4, 16))
    yield from (attack_case(options, attack, 100, 2) for attack in ("pgd-100", "apgd-ce"))
