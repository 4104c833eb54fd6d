"""Health checks on the surface of the answers: whether they move as images move, around the images that are evaluated too.

A model that looks up answers it has kept is right about the images it has seen and about everything close to them, under any
attack, and no gradient tells. But its answers stand still around those images, and jump where the look-up ends; and one that
only adds to its answers there, and fades out, still does not know the same images when they are moved by a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import PGD, Objective, margin, misclassified
from apd.attacks.threat import ThreatModel
from apd.evaluation.frozen import Subject
from apd.evaluation.result import Check

LINES = 16
"""Lines between two images each that are searched for jumps."""
GRID = (0.0, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Points of a line, closest to the image where a look-up would end."""
HALVINGS = 12
STEEPER = 100.0
"""How much steeper than the whole line a piece may be that is 4,096 times shorter than its part of the line."""
ROUNDING = 1e-4
"""Change of a logit, as a share of the largest, that rounding may cause."""
FLAT = 0.05
"""Movement within eps, as a share of the usual one half-way between two images, that counts as none."""
FLAT_SHARE = 0.2
"""Share of images that may have none."""
FEW = 0.05
WAYS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Moves of an image, in pixels down and to the right."""
SHIFTED_USUAL = 0.1
"""Share of images that may stand where they are and fall wherever they are moved; honest models had 8 % at most."""
SHIFTED_SHARE = 0.2
"""Share that fails, where it is more than `SHIFTED_USUAL` beyond `SHIFTED_CHANCE`."""
SHIFTED_CHANCE = 0.001


def jumps(subject: Subject, x: Tensor) -> Check:
    """Along a line from one image to another, answers must not jump.

    Each part of the line is halved again and again towards the half in which the logits move more: a continuous model then
    moves ever less, a jump stays.

    Args:
        subject: the model.
        x: two or more images (n,3,H,W) in [0,1].
    """
    n = min(LINES, len(x))
    start, way = x[:n], x.roll(-max(1, len(x) // 2), dims=0)[:n] - x[:n]
    grid = torch.tensor(GRID, device=x.device)
    known = torch.stack([subject.logits(start + t * way) for t in grid])  # (points, n, C)
    low, high = (part[:, None].expand(-1, n).clone() for part in (grid[:-1], grid[1:]))  # (parts, n)
    at_low, at_high = known[:-1].clone(), known[1:].clone()
    usual = _steepness(low, high, at_low, at_high).amax(dim=0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        images = (start + middle[..., None, None, None] * way).flatten(0, 1)
        found = subject.logits(images).view(at_low.shape)
        left = (found - at_low).abs().amax(dim=-1) >= (at_high - found).abs().amax(dim=-1)
        low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        at_low = torch.where(left[..., None], at_low, found)
        at_high = torch.where(left[..., None], found, at_high)
    moved = (at_high - at_low).abs().amax(dim=-1)
    visible = moved > ROUNDING * known.abs().amax(dim=(0, 2)).clamp_min(1e-12)
    jumped = visible & (_steepness(low, high, at_low, at_high) > STEEPER * usual)
    share = float(jumped.any(dim=0).float().mean())
    return Check(
        name="jumps",
        passed=share <= FEW,
        value=share,
        message=f"on {share:.1%} of lines between two images the logits jump from one point to the next; above {FEW:.0%} "
        "answers are looked up, rounded or switched",
    )


def _steepness(low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor) -> Tensor:
    return (at_high - at_low).abs().amax(dim=-1) / (high - low)


def flat_spots(subject: Subject, x: Tensor, seeds: Tensor, threat: ThreatModel) -> Check:
    """Answers must move around the images that are evaluated about as they do half-way between two of them.

    Args:
        subject: the model.
        x: two or more images (n,3,H,W) in [0,1].
        seeds: (n,) of the random steps.
        threat: how far a step goes; without a budget one level.
    """
    ball = threat if threat.eps > 0 else ThreatModel(1 / 255)
    between = (x + x.roll(-max(1, len(x) // 2), dims=0)) / 2
    here, there = (
        (subject.logits(ball.random_start(images, seeds)) - subject.logits(images)).abs().amax(dim=-1)
        for images in (x, between)
    )
    usual = float(there.median())
    share = float((here < FLAT * usual).float().mean())
    return Check(
        name="flat spots",
        passed=share <= FLAT_SHARE,
        value=share,
        message=f"around {share:.1%} of images the logits hardly move, as they do half-way between two images; above "
        f"{FLAT_SHARE:.0%} answers to these images may be kept ones",
    )


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images (B,3,H,W) moved by at most one pixel; the row or column that appears repeats its neighbour."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def shifted_images(
    subject: Subject, x: Tensor, labels: Tensor, seeds: Tensor, standing: Tensor, threat: ThreatModel
) -> Check:
    """Images that stand must not all fall once they are moved by a pixel.

    A single move changes what an honest model knows of small images, too: on 16 pixels a quarter of all images stood where
    they were and fell one pixel further. So an image counts only if it falls whichever of four ways it is moved, without an
    attack or under PGD on the margin within the same threat.

    Args:
        subject: the model, which has gradients.
        x: images (n,3,H,W) in [0,1].
        labels: (n,).
        seeds: (n,) of the random starts.
        standing: which images (n,) are right under every attack.
        threat: the limits within which copies are attacked.
    """
    from scipy.stats import binomtest

    left = standing.nonzero().squeeze(1)
    for way in WAYS:
        if len(left):
            copies, target = shifted(x[left], *way), labels[left]
            attack = PGD(steps=20, step_size=0.1, leave=misclassified)
            images = attack(Objective(subject.model, margin, target), copies, threat, seeds[left.cpu()])
            # An attack may by chance start from a copy that is right although the copy itself is wrong.
            fell = [misclassified(subject.logits(each), target) for each in (copies, images)]
            left = left[fell[0] | fell[1]]
    share = len(left) / len(x)
    chance = float(binomtest(len(left), len(x), SHIFTED_USUAL, alternative="greater").pvalue)
    return Check(
        name="shifted images",
        passed=share <= SHIFTED_SHARE or chance >= SHIFTED_CHANCE,
        value=share,
        message=f"{share:.1%} of images stand under every attack, but fall once they are moved by one pixel, whichever way; "
        f"well above {SHIFTED_SHARE:.0%} answers to these very images may be kept ones",
    )
