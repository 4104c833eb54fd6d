"""An attack on the smoothed classifier itself, which no certificate may contradict.

PGD on the smoothed probabilities, ``-log mean_i softmax(f(x' + d_i))_y`` over a few draws of noise that are new at every step
(SmoothAdv, Salman 2019, arXiv 1906.04584, eq. 7; fresh draws are expectation over transformation, Athalye 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import PGD, Objective, ThreatModel
from apd.evaluation.certified.smoothing import Head, Smoothing, Votes, noisy, votes
from apd.util.seeds import sample_seeds

STEPS, DRAWS = 10, 4
_FAR = 2**20
"""More than all blocks of noise: apart from the seeds of one step, those of the next."""


@dataclass
class _Smoothed:
    """Log-probabilities (B,C) of images (B,3,S,S) under noise, with a gradient; each call draws anew.

    Args:
        model: images to logits.
        seeds: one per image.
        sigma: standard deviation of the noise.
        draws: per image and call.
    """

    model: Head
    seeds: Sequence[int]
    sigma: float
    draws: int
    calls: int = field(default=0)

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        seeds = [seed + self.calls * _FAR for seed in self.seeds]
        batch = torch.cat([next(noisy(one, seed, self.sigma, self.draws)) for one, seed in zip(x, seeds, strict=True)])
        logits = self.model(batch).reshape(len(x), self.draws, -1)
        return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(self.draws)


def attack_smoothed(
    model: Head, x: Tensor, label: int, id_: str, radius: float, how: Smoothing, seed: int = 0
) -> Votes:
    """Attack the smoothed classifier on one image within an L2 ball, and return its votes on the image found.

    Args:
        model: images (B,3,S,S) to logits (B,C).
        x: the image (3,S,S) in [0,1].
        label: its class.
        id_: with ``seed`` decides what is random.
        radius: how far from the image, in [0,1] pixel units.
        how: the smoothing; the image found gets new noise of as many draws.
        seed: the evaluation's seed.
    """
    start, noise, judged = (sample_seeds([id_], seed, f"certified {what}") for what in ("start", "attack", "votes"))
    smoothed = _Smoothed(model, noise.tolist(), how.sigma, DRAWS)
    objective = Objective(smoothed, partial(F.nll_loss, reduction="none"), torch.tensor([label], device=x.device))
    threat = ThreatModel(radius, "l2")
    found = PGD(STEPS)(objective, x[None], threat, start)
    (found_votes,) = votes(model, [lambda logits: logits], found[0], int(judged), how)
    return found_votes
