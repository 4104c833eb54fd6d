"""One training step as one module: class features once, attack, loss; gradients synchronise when it is wrapped.

Passes of the image tower an optimiser step, for K attack steps (`train.attack.steps`)::

    kind                     student          fixed teacher, where loss or attack ask for it
                             fwd      bwd     fwd
    pgd                      K+1      K+1     1         (the default K = 2: 3 and 3)
    fgsm-rs, n-fgsm          2        2       1
    free                     1        1       1/m       (m = train.attack.replays)
    carried                  1        1       1
    clean methods            1        1       1

    train.attack.loss=kl     +1       -                 (unless the method needs the clean pass anyway: then it is shared)
    optimizer.sam or .awp    +1       +1      -         (the attack is not repeated)
    train.attack.stop_margin at most that of pgd, less the samples that have left

A clean student pass (FAP, TRADES, ``clean_ce``, ``clean_kl``) adds one forward and one backward pass, an online teacher
one forward and one backward pass, a teacher on x' one forward pass, whatever the kind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apd.attacks import (
    FGSMRS,
    NFGSM,
    PGD,
    Attack,
    FriendlyPGD,
    Objective,
    cross_entropy,
    dlr,
    kl,
    kl_from_logits,
    margin,
)
from apd.attacks.threat import ThreatModel
from apd.errors import ApdError, InputError
from apd.methods.base import Method, Step
from apd.settings.train import AttackLoss, AttackSettings, TrainSettings


def training_attack(settings: AttackSettings) -> Attack:
    """The attack that ``settings`` describe; `apd.training.persistent` stands in for it where images move with the prompts."""
    if settings.kind == "fgsm-rs":
        return FGSMRS()
    if settings.kind == "n-fgsm":
        return NFGSM()
    pgd = PGD(settings.steps, settings.step_size, random_start=settings.random_start)
    return pgd if settings.stop_margin is None else FriendlyPGD(pgd, settings.stop_margin)


def training_step(method: Method, settings: TrainSettings) -> TrainStep:
    """The step of ``method`` that ``settings`` describe."""
    return TrainStep(
        method,
        training_attack(settings.attack),
        settings.threat,
        settings.precision == "bf16",
        smoothing=settings.label_smoothing,
        inner=settings.attack.loss,
    )


class TrainStep(nn.Module):
    """From a batch to the method's loss terms.

    Class features are computed once, with their graph; the attack works on their detached values, and all that the
    loss needs again (clean features, the teacher's answers) is computed once a step.

    Args:
        method: whose student is trained.
        attack: of the training images; not run for methods that train on clean images.
        threat: the budget.
        bf16: run encoder passes under bfloat16 autocast; prompts, logits and gradients stay float32.
        smoothing: of labels, in the cross-entropy terms of the outer loss.
        inner: what the attack maximises in place of a method's cross-entropy; ``method``: what the method says.
    """

    images: Tensor
    """The images (B,3,S,S) that the last loss was taken on, detached: for a second look at the same ones."""

    def __init__(
        self,
        method: Method,
        attack: Attack,
        threat: ThreatModel,
        bf16: bool = False,
        *,
        smoothing: float = 0.0,
        inner: AttackLoss = "method",
    ) -> None:
        super().__init__()
        self.method, self.attack, self.threat, self.bf16 = method, attack, threat, bf16
        self.smoothing, self.inner = smoothing, inner
        self._last: tuple[Tensor, int, dict[str, Any]] | None = None

    def forward(
        self,
        x: Tensor,
        labels: Tensor,
        seeds: Tensor,
        index: Tensor | None = None,
        eps: float | None = None,
        x_adv: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named scalar terms; their sum is what to minimise.

        Args:
            x: images (B,3,S,S) in [0,1].
            labels: (B,) int64.
            seeds: (B,) int64, of the attack's random start.
            index: (B,) int64, the images' places in the training set.
            eps: another budget than the threat model's, in [0,1] pixel units.
            x_adv: adversarial images (B,3,S,S) from elsewhere; no attack is run. Where they ask for a gradient, the
                terms' backward pass gives it: of the outer loss, not of the attack's objective.
        """
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            step = Step(x, labels, self.method.student.bind(), index, self.smoothing, self._of_images(x))
            if x_adv is None:
                x_adv = self._attacked(step, seeds, eps) if self.method.adversarial else x
            self.images = x_adv.detach()
            return _checked(self.method, self.method.loss(step, x_adv))

    def _of_images(self, x: Tensor) -> dict[str, Any]:
        """What is known of these very images from the last call; nothing, if they are others or were written to."""
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = (x, x._version, {})
        return self._last[2]

    def _attacked(self, step: Step, seeds: Tensor, eps: float | None) -> Tensor:
        threat = self.threat if eps is None else replace(self.threat, eps=eps)
        objective = self._objective(step, self.method.inner(step, step.student.detach()))
        return self.attack(objective, step.x, threat, seeds).detach()

    def _objective(self, step: Step, own: Objective) -> Objective:
        """The method's inner objective, or the one that was asked for in its place."""
        if self.inner == "method":
            return own
        if own.loss not in (cross_entropy, kl):  # kl: a cross-entropy to soft labels
            raise InputError(
                f"train.attack.loss={self.inner} can replace a cross-entropy only, but this method's inner objective "
                "is another; set train.attack.loss=method."
            )
        if self.inner == "kl":
            return Objective(own.forward, kl_from_logits, step.clean_logits().detach())
        loss = {"ce": cross_entropy, "margin": margin, "dlr": dlr}[self.inner]
        return Objective(own.forward, loss, step.labels)


def _checked(method: Method, terms: object) -> dict[str, Tensor]:
    """The terms, as far as they are named scalars with a gradient.

    Raises:
        ApdError: naming the method, which may be another package's.
    """
    wanted = f"loss() of {type(method).__name__} must return named terms (a dict of scalars)"
    if not isinstance(terms, dict) or not terms:
        raise ApdError(f"{wanted}, got {'an empty one' if terms == {} else type(terms).__name__}.")
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            raise ApdError(f"{wanted}, got {type(term).__name__} for {name!r}.")
        if term.ndim:
            raise ApdError(f"{wanted}, got the shape {tuple(term.shape)} for {name!r}; take its mean over the samples.")
    if torch.is_grad_enabled() and not any(term.requires_grad for term in terms.values()):
        raise ApdError(
            f"{wanted} that depend on step.student, but no gradient of {', '.join(terms)} reaches its prompts."
        )
    return terms
