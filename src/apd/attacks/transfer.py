"""Transfer attacks: images made to fool one classifier, shown to another of which nothing else is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import (
    UNWATCHED,
    AttackBatch,
    EvaluationAttack,
    Found,
    Source,
    Surroundings,
    Watch,
    repeated,
)
from apd.attacks.objectives import Loss, Objective, cross_entropy, margin
from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.util.seeds import sample_seeds

_LOSSES: tuple[Loss, ...] = (cross_entropy, margin)


@dataclass(frozen=True)
class Transfer(EvaluationAttack):
    """Gradient ascent with momentum (MI-FGSM, Dong 2018, arXiv 1710.06081) on another classifier: a black box.

    Once on the cross-entropy and once on the margin; the classifier under attack only says whether an image fools it. Images go
    to the edge of the budget, not just over the source's border: those transfer best.

    Args:
        source: ``zero-shot``, a run folder, or a CLIP model.
        steps: steps of eps/10.
        decay: the momentum's share of the gradient before.
        made_on: the source itself, known once the attack is prepared.
    """

    source: str
    steps: int = 50
    decay: float = 1.0
    made_on: Source | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it is called in a result."""
        return f"transfer:{self.source}"

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks the model under attack for gradients: it asks its source only."""
        return False

    def prepared(self, surroundings: Surroundings) -> Transfer:
        """Load the source."""
        return replace(self, made_on=surroundings.classifier(self.source))

    def depends_on(self) -> dict[str, str]:
        """Return the source's fingerprint."""
        return {} if self.made_on is None else {"source": self.made_on.fingerprint}

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch, those of the source included; one with a gradient counts twice."""
        return (len(_LOSSES) * (2 * self.steps + 1),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Make images on the source, and show them to ``model``.

        Raises:
            InputError: the attack is not prepared.
        """
        watch.begin(self.name)
        if self.made_on is None:
            raise InputError(f"{self.name} is made by apd.evaluate; in Python give Transfer(..., made_on=Source(...)).")
        source = self.made_on.model

        def make(left: AttackBatch, number: int) -> Tensor:
            objective = Objective(source, _LOSSES[number], left.labels)
            seeds = sample_seeds(left.ids, left.seed, "transfer", number)
            return self._climb(objective, left.x, threat, seeds)

        return Found(repeated(make, len(_LOSSES), model, batch), [self.name] * len(batch))

    def _climb(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        here, velocity = threat.random_start(x, seeds), torch.zeros_like(x)
        for _ in range(self.steps):
            with torch.enable_grad():
                here.requires_grad_()
                (gradient,) = torch.autograd.grad(objective(here).sum(), here)
            size = gradient.abs().flatten(1).mean(dim=1).clamp_min(torch.finfo(here.dtype).tiny).view(-1, 1, 1, 1)
            velocity = self.decay * velocity + gradient / size
            here = threat.project(threat.ascend(here.detach(), velocity, 0.1 * threat.eps), x)
        return here
