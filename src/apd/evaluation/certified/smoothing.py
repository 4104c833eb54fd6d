"""Randomised smoothing (Cohen 2019, arXiv 1902.02918): a radius within which no image can change the answer.

::

    g(x)     = argmax_c P(f(x + d) = c),  d ~ N(0, sigma^2 I)           the smoothed classifier
    radius   = sigma * Phi^-1(p),         p <= P(f(x + d) = g(x)) with confidence 1 - alpha

The class is chosen on ``n0`` draws, its probability bounded on ``n`` further ones (Clopper-Pearson), as in the paper's CERTIFY.
Noisy images are not clipped to [0,1]: the certificate is about exactly this noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from apd.errors import ApdError, InputError

Head = Callable[[Tensor], Tensor]
"""Features (B, D) to logits (B, C)."""
BLOCK = 64
"""Noisy images that go through the model at a time; the noise of a block depends on nothing but the seed and its number."""


@dataclass(frozen=True)
class Smoothing:
    """How a classifier is smoothed, and how surely.

    Args:
        sigma: standard deviation of the noise, in [0,1] pixel units.
        n0: draws that choose the class.
        n: further draws that bound its probability.
        alpha: probability that a certificate is wrong.

    Raises:
        InputError: a value out of range.
    """

    sigma: float
    n0: int = 100
    n: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0.001 <= self.sigma < 10:
            raise InputError(
                f"sigma must lie between 0.001 and 10, in [0,1] pixel units such as 0.25, got {self.sigma:g}."
            )
        if self.n0 < 1 or self.n < 1:
            raise InputError(f"Smoothing needs n0 >= 1 and n >= 1 draws, got {self.n0} and {self.n}.")
        if not 0 < self.alpha < 0.5:
            raise InputError(
                f"alpha is the probability that a certificate is wrong, above 0 and below 0.5, got {self.alpha:g}."
            )

    @property
    def largest_radius(self) -> float:
        """The radius where all ``n`` draws agree; 0 where even that proves nothing."""
        return _radius(lower_bound(self.n, self.n, self.alpha), self.sigma)

    def certify(self, votes: Votes) -> Certificate:
        """Return the smoothed class and its radius, or abstain (the paper's CERTIFY)."""
        chosen = max(range(len(votes.first)), key=lambda label: votes.first[label])
        bound = lower_bound(votes.counts[chosen], sum(votes.counts), self.alpha)
        return Certificate(chosen, _radius(bound, self.sigma)) if bound > 0.5 else Certificate(None, 0.0)


@dataclass(frozen=True)
class Votes:
    """How often each class was the answer for one image under noise.

    Args:
        first: counts (C,) of the ``n0`` draws that choose the class.
        counts: counts (C,) of the ``n`` draws that bound its probability.
    """

    first: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def winner(self) -> int:
        """The class that most of the ``n`` draws vote for; the first one of a tie."""
        return max(range(len(self.counts)), key=lambda label: self.counts[label])


@dataclass(frozen=True)
class Certificate:
    """What is proved of one image.

    Args:
        predicted: the smoothed class; None where it abstains.
        radius: no image nearer than this in L2, in [0,1] pixel units, has another class.
    """

    predicted: int | None
    radius: float


def lower_bound(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound, of confidence ``1 - alpha``, of a probability seen ``k`` times in ``n``.

    >>> round(lower_bound(100, 100, 0.001), 4)
    0.9333
    """
    from scipy.stats import beta

    return float(beta.ppf(alpha, k, n - k + 1)) if k else 0.0


def _radius(probability: float, sigma: float) -> float:
    return sigma * NormalDist().inv_cdf(probability) if probability > 0.5 else 0.0


def noisy(x: Tensor, seed: int, sigma: float, draws: int) -> Iterator[Tensor]:
    """Yield the image ``x`` (3,S,S) under ``draws`` draws of noise, `BLOCK` or fewer (B,3,S,S) at a time.

    Drawn on the CPU block by block from the seed, so that an image gets the same noise on every device, and fewer draws are
    the first ones of more.
    """
    for block, start in enumerate(range(0, draws, BLOCK)):
        generator = torch.Generator().manual_seed(seed + block)
        noise = torch.randn((BLOCK, *x.shape), generator=generator)[: draws - start]
        yield x + sigma * noise.to(x)


def count_votes(answers: Tensor, smoothing: Smoothing, n_classes: int) -> Votes:
    """Count predicted classes (n0 + n,) of one image, in the order in which the noise was drawn."""
    first, rest = (
        torch.bincount(part, minlength=n_classes).tolist()
        for part in (answers[: smoothing.n0], answers[smoothing.n0 : smoothing.n0 + smoothing.n])
    )
    return Votes(tuple(first), tuple(rest))


def votes(
    embed: Callable[[Tensor], Tensor], heads: Sequence[Head], x: Tensor, seed: int, how: Smoothing
) -> list[Votes]:
    """Let several heads vote on one image under the same noise, which goes through ``embed`` once for all of them.

    Args:
        embed: images (B,3,S,S) to features (B,D).
        heads: features to logits, one per set of classes.
        x: the image (3,S,S) in [0,1].
        seed: decides the noise.
        how: sigma and the numbers of draws.

    Raises:
        ApdError: logits that are not finite.
    """
    answers: list[list[Tensor]] = [[] for _ in heads]
    classes = [0] * len(heads)
    with torch.no_grad():
        for batch in noisy(x, seed, how.sigma, how.n0 + how.n):
            features = embed(batch)
            for place, head in enumerate(heads):
                logits = head(features)
                if not bool(logits.isfinite().all()):
                    raise ApdError(
                        f"The classifier gives logits that are not finite under noise of sigma {how.sigma:g}."
                    )
                classes[place] = logits.shape[-1]
                answers[place].append(logits.argmax(dim=-1).cpu())
    return [count_votes(torch.cat(found), how, n) for found, n in zip(answers, classes, strict=True)]
