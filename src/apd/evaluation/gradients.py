"""Health checks on gradients: whether there are any, and whether they are the slope of the answers.

A white-box attack climbs along the gradient. A model can be in its way by accident (a detached tensor, a JPEG step) or by
design (a backward pass of its own); either way the attack fails and the model looks robust.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apd.attacks import cross_entropy, margin
from apd.attacks.threat import ThreatModel
from apd.evaluation.frozen import Subject
from apd.evaluation.result import Check
from apd.util.memory import is_out_of_memory

LEVEL = 1 / 255
DISAGREE = 0.2
"""Share of images whose gradient may differ from the measured slope: kinks of a network lie in the way of a few."""
OFF = 0.5
"""How far a change may be from the predicted one, as a share of that or of what a step at random changes."""
NOISE = 1e-4
"""Change of a logit, as a share of the largest, below which rounding hides the slope."""


def no_gradient(subject: Subject, x: Tensor, labels: Tensor) -> str | None:
    """Say why white-box attacks do not apply to the model; None where they do.

    Args:
        subject: the model; it must be `Subject.fixed`.
        x: images (B,3,H,W) in [0,1].
        labels: (B,).
    """
    point = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(cross_entropy(subject.model(point), labels).sum(), point)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        subject.logits(x)  # what fails without gradients too is another error, and is raised here
        return f"the graph from pixels to logits is cut: {str(error).splitlines()[0][:90]}"
    if not bool(gradient.isfinite().all()):
        bad = float((~gradient.isfinite()).flatten(1).any(dim=1).float().mean())
        return f"gradients are not finite on {bad:.0%} of images"
    return None


def has_gradient(why_not: str | None) -> Check:
    """Without a gradient no white-box attack applies."""
    return Check(
        name="gradient",
        passed=why_not is None,
        value=float(why_not is not None),
        message="the logits have a gradient to the pixels" if why_not is None else f"no gradient ({why_not})",
    )


def recording(subject: Subject, x: Tensor) -> Check:
    """Logits must not depend on whether gradients are recorded: an attack records them, a user does not."""
    without = subject.logits(x)
    with torch.enable_grad():
        recorded = subject.model(x.clone().requires_grad_()).detach()
    moved = float((recorded - without).abs().max()) / max(1.0, float(without.abs().max()))
    return Check(
        name="gradient recording",
        passed=moved <= NOISE,
        value=moved,
        message=f"logits move by {moved:.1e} of the largest when gradients are recorded",
    )


def true_gradients(subject: Subject, x: Tensor, labels: Tensor, seeds: Tensor, threat: ThreatModel) -> Check:
    """The gradient of the margin must predict how the margin changes over small steps along it and across it.

    A step is a quarter of eps, of a level at most, in each pixel up and down, as far as [0,1] allows: where the gradient
    points, and at random.
    """
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = subject.model(point)
        (gradient,) = torch.autograd.grad(margin(logits, labels).sum(), point)
    size = min(threat.eps or LEVEL, LEVEL) / 4
    large = NOISE * logits.detach().abs().amax(dim=1).clamp_min(1e-12)
    wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for way in (gradient.sign(), ThreatModel(1.0).random_start(torch.full_like(x, 0.5), seeds).sub(0.5).sign()):
        up, down = (x + size * way).clamp(0, 1), (x - size * way).clamp(0, 1)
        steps = gradient * (up - down)
        predicted, usual = steps.flatten(1).sum(dim=1), steps.flatten(1).norm(dim=1)
        found = margin(subject.logits(up), labels) - margin(subject.logits(down), labels)
        off = (found - predicted).abs()
        # Written so that a value that is not a number disagrees.
        wrong |= (off > large) & ~(off <= OFF * torch.maximum(predicted.abs(), usual))
    share = float(wrong.float().mean())
    return Check(
        name="true gradients",
        passed=share <= DISAGREE,
        value=share,
        message=f"on {share:.1%} of images a small step changes the margin otherwise than the gradient says; above "
        f"{DISAGREE:.0%} gradients are not the slope of the answers",
    )
