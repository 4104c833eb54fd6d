"""The threat model: how far an adversarial image may be from the clean one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator
from torch import Tensor

from apd.attacks import l1
from apd.errors import InputError
from apd.util.text import short

Norm = Literal["linf", "l2", "l1"]


def _text(value: object) -> object:
    if isinstance(value, Real) and not isinstance(value, int):
        return repr(float(value))  # numpy's numbers among them
    return value if value is None or isinstance(value, str) else repr(value)


EpsText = Annotated[str, BeforeValidator(_text)]
"""A budget among settings, as it was written; `parse_eps` reads it."""

_ORDER: dict[str, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
_DUAL: dict[str, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


def parse_eps(value: str | float, norm: Norm = "linf") -> float:
    """Read a budget in [0,1] pixel units, written as a float or as a fraction such as ``4/255``.

    Raises:
        InputError: for anything that is not a number, negative or infinite, and for an Linf budget above 1.

    >>> parse_eps("4/255") == 4 / 255
    True
    """
    text = str(value).strip()
    if not re.fullmatch(r"[0-9.eE+-]+(\s*/\s*[0-9.]+)?", text):
        raise InputError(f"eps must be a number in [0,1] pixel units such as 4/255, got {short(text)}.")
    try:
        numerator, _, denominator = text.partition("/")
        eps = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"eps must be a number in [0,1] pixel units such as 4/255, got {short(text)}.") from error
    if not math.isfinite(eps) or eps < 0:
        raise InputError(f"eps must not be negative or infinite, got {text[:40]}.")
    if norm == "linf" and eps > 1:
        # Up to a quarter of the range somebody may have meant levels; above it no attack is.
        hint = f"Did you mean {text}/255?" if eps <= 64 and not denominator else "8/255 is a common budget."
        raise InputError(f"eps is in [0,1] pixel units, got {text[:40]}. {hint}")
    return eps


def format_eps(eps: float, norm: str = "linf") -> str:
    """A budget as people write it: in 255ths where it is one of Linf (of at most two decimals), else as a number.

    The length of a whole image's change, as L2 and L1 have it, is not counted in levels.

    >>> format_eps(4 / 255), format_eps(0.5 / 255), format_eps(0.3), format_eps(0.2, "l2")
    ('4/255', '0.5/255', '0.3', '0.2')
    """
    if norm != "linf":
        return f"{eps:g}"
    levels = round(eps * 255, 2)
    in_levels = 0 < levels <= 64 and abs(eps * 255 - levels) < 1e-6
    return f"{levels:g}/255" if in_levels else f"{eps:g}"


def unit(gradient: Tensor) -> Tensor:
    """Return gradients (B,...) as directions, each of L2 length 1; one that is 0 throughout stays so.

    Scaled by the largest entry first: where a model is certain, the cross-entropy's gradient is so small that its square is 0.
    """
    flat = gradient.flatten(1)
    scaled = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return F.normalize(scaled, dim=1).view_as(gradient)


def _per_sample(x: Tensor, like: Tensor) -> Tensor:
    return x.view(-1, *([1] * (like.dim() - 1)))


@dataclass(frozen=True)
class ThreatModel:
    """All images within ``eps`` of the clean one in ``norm``, inside [0,1].

    Args:
        eps: radius in [0,1] pixel units (for L2 and L1: of the whole image's difference).
        norm: ``linf``, ``l2`` or ``l1``.
        shares: (B,) factor of eps for each image of a batch, and of each step; None: 1 for all.
    """

    eps: float
    norm: Norm = "linf"
    shares: Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in _ORDER:
            raise InputError(f"norm must be linf, l2 or l1, got {self.norm!r}.")
        parse_eps(self.eps, self.norm)

    def doubt(self) -> str | None:
        """Return a warning if eps looks like an Linf budget, 0.5/255 to 16/255, which another norm gives to the whole image."""
        halves = self.eps * 255 * 2
        if self.norm == "linf" or not 0 < halves <= 32 or abs(halves - round(halves)) > 1e-6:
            return None
        return (
            # In 255ths, as it was probably written.
            f"eps {format_eps(self.eps)} within {self.norm} is the length of the whole image's change, next to none, which says "
            f"little about a model. Give an eps of this norm, such as {'0.5' if self.norm == 'l2' else '12'}."
        )

    def _each(self, length: float, like: Tensor) -> float | Tensor:
        """``length`` times each image's share, to go with images ``like`` (B,...)."""
        return length if self.shares is None else _per_sample(length * self.shares, like)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Into the ball around ``x`` (B,3,H,W), then into [0,1]; clipping towards ``x`` in [0,1] cannot leave the ball.

        For Linf and L1 this is the nearest allowed image; for L2 the usual approximation of it.
        """
        delta = x_adv - x
        eps = self._each(self.eps, x)
        if self.norm == "linf":
            delta = torch.clamp(delta, -eps, eps)  # type: ignore[arg-type]  # both numbers or both tensors
        elif self.norm == "l1":
            delta = l1.project(delta, x, eps)
        else:
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
            delta = delta * (eps / _per_sample(length, x)).clamp(max=1.0)
        return (x + delta).clamp(0.0, 1.0)

    def random_start(self, x: Tensor, seeds: Tensor) -> Tensor:
        """A point drawn uniformly from the ball (then clipped to [0,1]), from one seed per sample.

        Drawn on the CPU, so that a sample starts at the same point whatever the batch and the device.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        if self.norm == "linf":
            draws = torch.stack([torch.rand(x.shape[1:], generator=generator) for generator in generators])
            noise = (draws.to(x.device) * 2 - 1) * self._each(self.eps, x)
        else:
            draw = self._draw_l1 if self.norm == "l1" else self._draw_l2
            draws = torch.stack([draw(x.shape[1:], generator) for generator in generators])
            noise = draws.to(x.device) * self._each(1.0, x)
        return self.project(x + noise.to(x), x)

    def _draw_l2(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        direction = torch.randn(shape, generator=generator)
        radius = torch.rand((), generator=generator) ** (1.0 / direction.numel())
        noise: Tensor = direction / direction.norm() * radius * self.eps
        return noise

    def _draw_l1(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return l1.draw(shape, self.eps, generator)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step: float) -> Tensor:
        """One step of ascent of length ``step``, not projected: the steepest for Linf and L2, a sparse one for L1."""
        lengths = self._each(step, x_adv)
        if self.norm == "l1":
            return l1.ascend(x_adv, gradient, lengths, step)
        if self.norm == "linf":
            return x_adv + lengths * gradient.sign()
        return x_adv + lengths * unit(gradient)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the distance (B,) of images from the clean ones in this norm."""
        length: Tensor = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=_ORDER[self.norm], dim=1)
        return length

    def slope(self, gradient: Tensor) -> Tensor:
        """Return the dual norm (B,) of gradients (B,...): how much a small budget raises the function, per unit of eps."""
        slope: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=_DUAL[self.norm], dim=1)
        return slope

    def half_range(self, n: int) -> ThreatModel:
        """Return the threat model of this norm that allows ``n`` pixel values to change by half of their range."""
        return ThreatModel({"linf": 0.5, "l2": 0.5 * math.sqrt(n), "l1": 0.5 * n}[self.norm], self.norm)
