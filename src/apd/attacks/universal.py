"""One perturbation for all images (Moosavi-Dezfooli 2017, arXiv 1610.08401)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Surroundings, Watch
from apd.attacks.objectives import margin_and_gradient
from apd.attacks.threat import ThreatModel
from apd.errors import InputError

_ENOUGH = 1.0
"""Margin (logits) beyond which a fooled image asks for no more."""


@dataclass(frozen=True, eq=False)
class Universal(EvaluationAttack):
    """One perturbation, learned on validation images by stochastic ascent of the clipped margin (Shafahi 2020, arXiv 1811.11304).

    What is reported is how it does on the images under attack, which it has not seen: it needs no gradient or query of theirs.

    Args:
        steps: steps of eps/10, half as long in the last half.
        batch_size: validation images per step.
        learned_on: returns validation images, known once the attack is prepared.
    """

    steps: int = 200
    batch_size: int = 64
    name: str = "universal"
    learned_on: Callable[[], AttackBatch] | None = None
    _learned: dict[tuple[int, str, float, int], tuple[nn.Module, Tensor]] = field(default_factory=dict, repr=False)

    def prepared(self, surroundings: Surroundings) -> Universal:
        """Take the validation images; the perturbation is learned when it is first needed."""
        return replace(self, learned_on=surroundings.validation, _learned={})

    def depends_on(self) -> dict[str, str]:
        """Return a hash of the images that it learns from."""
        if self.learned_on is None:
            return {}
        images = self.learned_on()
        digest = hashlib.sha256(images.x.cpu().contiguous().numpy().tobytes())
        digest.update(repr(images.labels.tolist()).encode())
        return {"learned on": digest.hexdigest()[:16]}

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch: none but a look. Learning comes on top, once."""
        return (1,)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Add the perturbation to ``batch``.

        Raises:
            InputError: the attack is not prepared.
        """
        watch.begin(self.name)
        key = (id(model), threat.norm, threat.eps, batch.seed)
        if key not in self._learned:
            self._learned[key] = model, self.learn(model, threat, batch.seed)
        return Found(threat.project(batch.x + self._learned[key][1], batch.x), [self.name] * len(batch))

    def learn(self, model: nn.Module, threat: ThreatModel, seed: int) -> Tensor:
        """Return the perturbation (1,3,H,W) for ``model``.

        Raises:
            InputError: there are no images to learn from.
        """
        images = None if self.learned_on is None else self.learned_on()
        if images is None or len(images) == 0:
            raise InputError(f"{self.name} learns on validation images, of which there are none here.")
        generator = torch.Generator().manual_seed(seed)
        grey = torch.full_like(images.x[:1], 0.5)
        delta = torch.zeros_like(grey)
        for step in range(self.steps):
            drawn = torch.randperm(len(images), generator=generator)[: self.batch_size]
            some = images.select(drawn.to(images.x.device))
            values, gradient = margin_and_gradient(model, (some.x + delta).clamp(0, 1), some.labels)
            wanted = gradient * (values < _ENOUGH).view(-1, 1, 1, 1)
            size = threat.eps * (0.1 if 2 * step < self.steps else 0.05)
            delta = threat.project(threat.ascend(grey + delta, wanted.sum(dim=0, keepdim=True), size), grey) - grey
        return delta
