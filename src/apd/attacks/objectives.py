"""Objectives: what attacks maximise and, averaged, what training minimises; one value per sample.

``z`` are logits (B, C) with the logit scale included. A loss that an `Objective` takes has the form
``loss(outputs, target) -> (B,)``; `LOSSES` names those that can replace a method's own in the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.errors import ApdError, InputError
from apd.util.plugins import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs (B, ...) and a target (B, ...) to one value per sample (B,)."""


@dataclass(frozen=True)
class Objective:
    """What an attack maximises: ``loss(forward(x), target)``, one value per sample.

    Args:
        forward: pixels (B,3,H,W) in [0,1] to outputs (B,...): logits, or features.
        loss: outputs and target to one value per sample (B,).
        target: (B,...), what the loss compares with: labels, soft labels, clean features.
    """

    forward: Callable[[Tensor], Tensor]
    loss: Loss
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the loss per sample (B,) at the images ``x`` (B,3,H,W)."""
        return self.of(self.forward(x))

    def of(self, outputs: Tensor) -> Tensor:
        """Return the loss per sample (B,) of outputs (B,...).

        Raises:
            InputError: a loss from elsewhere that gives something else, or cuts the gradient.
        """
        values: object = self.loss(outputs, self.target)
        name = getattr(self.loss, "__name__", type(self.loss).__name__)
        if not isinstance(values, Tensor) or values.shape != outputs.shape[:1]:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"The attack loss {name} must return one value per sample, ({len(outputs)},), but returns {got}."
            )
        if torch.is_grad_enabled() and outputs.requires_grad and not values.requires_grad:
            raise InputError(f"The attack loss {name} has no gradient: argmax, comparisons and detach() cut it.")
        return values

    def select(self, index: Tensor) -> Objective:
        """Return the objective for the samples at ``index`` only."""
        return Objective(self.forward, self.loss, self.target[index])


def cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(z)[y]`` (Madry 2018, eq. 2.1). Flat where the logit scale saturates the softmax; see `margin`."""
    return F.cross_entropy(z, labels, reduction="none")


def kl(*, p: Tensor, q: Tensor, tau: float = 1.0) -> Tensor:
    """``tau^2 * KL(softmax(p / tau) || softmax(q / tau))`` of logits ``p`` and ``q`` (B, C), per sample (Hinton 2015)."""
    log_p, log_q = F.log_softmax(p / tau, dim=-1), F.log_softmax(q / tau, dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1) * tau**2


def kl_to_logits(z: Tensor, target: Tensor) -> Tensor:
    """``KL(softmax(target) || softmax(z))`` with target logits (B, C) (TRADES, Zhang 2019, eq. 5)."""
    return kl(p=target, q=z)


def kl_to_probabilities(z: Tensor, target: Tensor) -> Tensor:
    """``KL(target || softmax(z))`` with target probabilities (B, C): a cross-entropy to soft labels, less a constant."""
    return F.kl_div(F.log_softmax(z, dim=-1), target, reduction="none").sum(dim=-1)


def kl_of_pair(outputs: Tensor, _: Tensor) -> Tensor:
    """``KL(softmax(z_T) || softmax(z_S))`` of outputs ``[z_T, z_S]`` (B, 2C).

    Both models see the attacked image (AdaAD, Huang 2023).
    """
    z_teacher, z_student = outputs.chunk(2, dim=1)
    return kl(p=z_teacher, q=z_student)


def margin(z: Tensor, labels: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y``, positive where the sample is fooled (Carlini 2017, f_6, not cut at 0)."""
    true = F.one_hot(labels, z.shape[-1]).bool()
    others = z.masked_fill(true, -torch.inf).amax(dim=-1)
    return others - z.gather(1, labels[:, None]).squeeze(1)


def margin_and_gradient(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margins (B,) of the model's logits, and their gradient with respect to the images (B,3,H,W)."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        values = margin(model(images), labels)
        (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), gradient


def dlr(z: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, ``margin / (z_1 - z_3)`` with the logits sorted downwards (Croce 2020, eq. 4).

    Raises:
        InputError: fewer than three classes.
    """
    if z.shape[-1] < 3:
        raise InputError(f"The dlr loss needs at least three classes, got {z.shape[-1]}; use margin.")
    top = z.topk(3, dim=-1).values
    return margin(z, labels) / (top[..., 0] - top[..., 2] + 1e-12)


def squared_distance(features: Tensor, target: Tensor) -> Tensor:
    """``||f - t||^2`` of features (B, D), not of unit length (FARE, Schlarmann 2024, eq. 3)."""
    return (features - target).square().sum(dim=-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """``1 - cos(a, b)`` of features (N, D), one value per row (N,)."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def finite(z: Tensor) -> Tensor:
    """Return logits (B,C) as they are.

    Raises:
        ApdError: some are not finite, which an accuracy would hide.
    """
    if not bool(z.isfinite().all()):
        bad = int((~z.isfinite()).any(dim=1).sum())
        raise ApdError(f"The classifier gives logits that are not finite for {bad} of {len(z)} images.")
    return z


def misclassified(z: Tensor, labels: Tensor) -> Tensor:
    """Which samples (B,) the logits ``z`` (B,C) get wrong."""
    return z.argmax(dim=-1) != labels


def _loss_problem(found: object) -> str | None:
    return None if callable(found) else "is not a function of outputs and labels"


LOSSES: Registry[Loss] = Registry(
    "attack loss",
    "apd.losses",
    {"ce": cross_entropy, "margin": margin, "dlr": dlr, "kl": kl_to_logits},
    _loss_problem,
)
"""What ``train.attack.loss`` names; ``kl`` is taken to the student's clean answer, the others to the labels."""
