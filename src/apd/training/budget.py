"""A budget for each image: more to images whose loss is flat, less to those it is steep at, the same on average."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from apd.attacks.objectives import Objective
from apd.attacks.threat import ThreatModel

_LOW, _HIGH = 0.5, 1.5
"""Least and largest share of eps that an image has."""
_HALVINGS = 40


def per_image(objective: Objective, x: Tensor, threat: ThreatModel) -> ThreatModel:
    """Share eps out among the images ``x`` (B,3,H,W), in inverse proportion to the objective's slope at each.

    The slope is the gradient's norm that is dual to the threat's (L1 for Linf): what a small eps raises the objective by.
    So, up to the limits, each image's objective rises by the same to first order.
    """
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(x := x.detach().requires_grad_()).sum(), x)
    slope = threat.slope(gradient.float())
    return replace(threat, shares=shares_of(slope))


def shares_of(slope: Tensor) -> Tensor:
    """Return ``clip(c / slope, 0.5, 1.5)`` (B,), with the c that makes their mean 1.

    >>> [round(share, 3) for share in shares_of(torch.tensor([1.0, 1.0, 100.0, 1.0])).tolist()]
    [1.167, 1.167, 0.5, 1.167]
    """
    slope = slope.clamp_min(torch.finfo(slope.dtype).tiny)
    # All shares are lowest at one end, highest at the other, and their mean grows in between.
    low, high = (_LOW * slope.min()).log(), (_HIGH * slope.max()).log()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = ((middle - slope.log()).exp().clamp(_LOW, _HIGH).mean() < 1).to(slope.dtype)
        low, high = low + below * (middle - low), middle + below * (high - middle)
    return (high - slope.log()).exp().clamp(_LOW, _HIGH)
