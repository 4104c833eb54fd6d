"""Indicators of Attack Failure (Pintor 2022, arXiv 2106.09947), written from the paper, on PGD that climbs the margin.

The six indicators ask whether an attack could have worked: gradients are there, predictions are stable, no success was
thrown away, the optimisation came to its end, what fools the model in the attack fools the deployed one, and an attack
without a budget succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apd.attacks import ThreatModel, margin, misclassified

STEPS = 30
STEP = 0.1
"""Step size as a fraction of the budget."""
LAST = 10
"""Iterations over which the loss may still change by `CHANGE` of its range (indicator 4)."""
CHANGE = 0.05
NEIGHBOURS, RADIUS, UNSTABLE = 16, 8 / 255, 0.1
"""Random points around an image, within half of ``RADIUS``, and the mean relative change of the loss (indicator 2)."""
SHARE = 0.1
"""Share of images above which an indicator of single images counts for the model."""

INDICATORS = (
    "unavailable gradients",
    "unstable predictions",
    "silent success",
    "incomplete optimization",
    "transfer failure",
    "unconstrained attack failure",
)


@dataclass
class Path:
    """An attack step by step: losses and successes (steps + 1, B) as it saw them, and its last images."""

    losses: Tensor
    fooled: Tensor
    images: Tensor


def climb(model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> Path:
    """PGD on the margin from the clean images, without leaving early.

    Raises:
        RuntimeError: the graph is cut.
    """
    losses, fooled, here = [], [], x
    for step in range(STEPS + 1):
        with torch.enable_grad():
            point = here.clone().requires_grad_()
            logits = model(point)
            loss = margin(logits, labels)
            (gradient,) = torch.autograd.grad(loss.sum(), point)
        losses.append(loss.detach())
        fooled.append(misclassified(logits.detach(), labels))
        if step < STEPS:
            here = threat.project(threat.ascend(here, gradient.nan_to_num(), STEP * threat.eps), x)
    return Path(torch.stack(losses), torch.stack(fooled), here)


def indicators(model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> dict[str, bool]:
    """Which of `INDICATORS` fire for a model, on images (B,3,H,W) that it gets right."""
    found = dict.fromkeys(INDICATORS, False)
    try:
        gradient = _gradient(model, x, labels)
        path = climb(model, x, labels, threat)
        free = climb(model, x, labels, ThreatModel(1.0))
    except RuntimeError:
        # Without a graph no attack runs, and nothing else can be said.
        return {**found, "unavailable gradients": True}
    with torch.no_grad():
        deployed, without_budget = (misclassified(model(images), labels) for images in (path.images, free.images))
    found["unavailable gradients"] = bool((gradient.flatten(1) == 0).all(dim=1).any() | ~gradient.isfinite().all())
    found["unstable predictions"] = _instability(model, x, labels) > UNSTABLE
    found["silent success"] = _share(path.fooled[:-1].any(dim=0) & ~deployed) > SHARE
    found["incomplete optimization"] = _share(_incomplete(path.losses) & ~deployed) > SHARE
    found["transfer failure"] = _share(path.fooled[-1] & ~deployed) > SHARE
    found["unconstrained attack failure"] = _share(~without_budget) > SHARE
    return found


def _gradient(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(model(point), labels).sum(), point)
    return gradient


def _share(which: Tensor) -> float:
    return float(which.float().mean())


def _instability(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Mean change of the loss around the images, relative to the loss there; at most 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        here = margin(model(x), labels)
        scale = here.abs().where(here != 0, torch.ones_like(here))
        changes = []
        for _ in range(NEIGHBOURS):
            near = (x + (torch.rand(x.shape, generator=generator) - 0.5).to(x) * RADIUS).clamp(0, 1)
            changes.append((margin(model(near), labels) - here).abs() / scale)
    return min(1.0, float(torch.stack(changes).mean().nan_to_num(1.0)))


def _incomplete(losses: Tensor) -> Tensor:
    """Whether the best loss so far, scaled to its range, still rises at the end (B,)."""
    span = (losses.amax(dim=0) - losses.amin(dim=0)).clamp_min(1e-12)
    best = ((losses - losses.amin(dim=0)) / span).cummax(dim=0).values
    return best[-1] - best[-LAST] > CHANGE
