"""Defences that hide a weak model's weakness: wrappers around any classifier, by what they do.

Each is made from a `Case`. What is planted is known: the model below it keeps next to nothing under the same attack, so an
accuracy above that is not its robustness.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What a defence may use.

    Args:
        base: the model that it hides, pixels (B,3,S,S) to logits (B,C).
        decoy: another model of the same form.
        x: the images that will be evaluated.
        labels: their classes.
        eps: the budget of the attacks.
    """

    base: nn.Module
    decoy: nn.Module
    x: Tensor
    labels: Tensor
    eps: float


class Defence(nn.Module):
    """A model behind a defence; ``forward`` is the defence's own."""

    def __init__(self, case: Case, answer: Callable[[Defence, Tensor], Tensor]) -> None:
        super().__init__()
        self.base, self.decoy, self.answer = case.base, case.decoy, answer
        self.case, self.calls, self.seen = case, 0, list[tuple[Tensor, Tensor]]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(self, x)


class _Backward(torch.autograd.Function):
    """The identity, with a backward pass of its own."""

    @staticmethod
    def forward(context: Any, x: Tensor, change: Call) -> Tensor:
        context.change = change
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.change(gradients[0]), None


def _backward(change: Call) -> Callable[[Defence, Tensor], Tensor]:
    return lambda self, x: self.base(_Backward.apply(x, change))


def _on_pixels(change: Call) -> Callable[[Defence, Tensor], Tensor]:
    return lambda self, x: self.base(change(x))


def _on_logits(change: Call) -> Callable[[Defence, Tensor], Tensor]:
    return lambda self, x: change(self.base(x))


def _jpeg(x: Tensor) -> Tensor:
    """Through a JPEG file, as a service that takes files does."""
    found = []
    for pixels in (x.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=75)
        found.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(found).to(x) / 255


def _without_grad(mode: Callable[[], Any]) -> Callable[[Defence, Tensor], Tensor]:
    def answer(self: Defence, x: Tensor) -> Tensor:
        with mode():
            z: Tensor = self.base(x)
        return z

    return answer


def _resized(x: Tensor) -> Tensor:
    """At a random size, at a random place."""
    side = x.shape[-1]
    small = int(torch.randint(side * 3 // 4, side, ()))
    left, top = (int(torch.randint(0, side - small + 1, ())) for _ in range(2))
    room = side - small
    return F.pad(F.interpolate(x, size=small, mode="bilinear"), (left, room - left, top, room - top), value=0.0)


def _hot(z: Tensor) -> Tensor:
    return F.one_hot(z.argmax(dim=-1), z.shape[-1]).to(z) * 10


def _confident(z: Tensor) -> Tensor:
    """Divided by a temperature that falls as the answer is surer."""
    top = z.topk(2, dim=-1).values
    sure = (top[:, :1] - top[:, 1:]) / z.abs().amax(dim=-1, keepdim=True)
    return z * (1 + 1e5 * sure)


def _distance(x: Tensor, kept: Tensor) -> Tensor:
    """Largest difference of a pixel between each image (B,...) and each kept one (n,...): (B,n)."""
    return torch.cdist(x.detach().flatten(1), kept.flatten(1), p=float("inf"))


def _looked_up(labels: bool, radius: float = 2.0, smooth: bool = False, tiny: float = 1e-4) -> Callable[..., Tensor]:
    """Kept answers near images that are known, with a tiny share of the model's own for a gradient.

    Args:
        labels: keep the right classes, not the model's own clean answers.
        radius: how near, in eps.
        smooth: pass over to the model's own answer without a jump.
        tiny: the share.
    """

    def answer(self: Defence, x: Tensor) -> Tensor:
        own: Tensor = self.base(x)
        with torch.no_grad():
            known = self.base(self.case.x)
            kept = F.one_hot(self.case.labels, known.shape[-1]) * known.abs().amax() if labels else known
        far, which = _distance(x, self.case.x).min(dim=1)
        reach = radius * self.case.eps
        share = ((far - reach) / reach if smooth else (far > reach).to(x)).clamp(tiny, 1)[:, None]
        return share * own + (1 - share) * kept[which].to(own)

    return answer


def _added(self: Defence, x: Tensor) -> Tensor:
    """The model's own answer, and a bonus for the right class that is the same throughout the ball and fades out beyond it."""
    eps, labels = self.case.eps, self.case.labels
    near = ((2.9 * eps - _distance(x, self.case.x)) / (2.9 * eps - 1.05 * eps)).clamp(0, 1)
    own: Tensor = self.base(x)
    return own + 40 * near @ F.one_hot(labels, own.shape[-1]).to(own)


def _first_seen(self: Defence, x: Tensor) -> Tensor:
    """The answer to the first image that was near: every query is remembered."""
    own: Tensor = self.base(x)
    kept = own.detach().clone()
    if self.seen:
        images, answers = (torch.stack(part) for part in zip(*self.seen, strict=True))
        far, which = _distance(x, images).min(dim=1)
        near = far <= 2 * self.case.eps
        kept[near] = answers[which[near]]
    else:
        near = torch.zeros(len(x), dtype=torch.bool)
    new = (~near).nonzero().flatten().tolist()[: 256 - len(self.seen)]
    self.seen += [(x[i].detach().clone(), own[i].detach().clone()) for i in new]
    return torch.where(near[:, None], kept + 1e-4 * (own - own.detach()), own)


def _counted(self: Defence, x: Tensor) -> Tensor:
    """After thirty calls, an attack is suspected: kept answers to what is near a known image, wrong ones to the rest."""
    own: Tensor = self.base(x)
    if self.calls <= 30:
        return own
    far, which = _distance(x, self.case.x).min(dim=1)
    with torch.no_grad():
        kept = self.base(self.case.x)[which]
    return torch.where((far <= 2 * self.case.eps)[:, None], kept + 1e-4 * own, own.flip(-1))


def _detected(self: Defence, x: Tensor) -> Tensor:
    """Where smoothing changes the answer, an attack is suspected, and the smoothed image is answered, without a gradient."""
    own: Tensor = self.base(x)
    with torch.no_grad():
        smooth = self.base(F.avg_pool2d(x, 3, 1, 1))
    return torch.where((own.argmax(-1) == smooth.argmax(-1))[:, None], own, smooth)


def _recorded_decoy(self: Defence, x: Tensor) -> Tensor:
    z: Tensor = (self.decoy if torch.is_grad_enabled() else self.base)(x)
    return z


def _noise_for_gradients(self: Defence, x: Tensor) -> Tensor:
    z: Tensor = self.base((x + 0.3 * torch.randn_like(x)).clamp(0, 1) if x.requires_grad else x)
    return z


def _decoy_gradient(self: Defence, x: Tensor) -> Tensor:
    decoy = self.decoy(x)
    with torch.no_grad():
        own = self.base(x)
    return own + decoy - decoy.detach()


def _training_mode(self: Defence, x: Tensor) -> Tensor:
    """Statistics of the batch, as in training, whatever ``eval`` says."""
    x = F.batch_norm(x, None, None, training=True) * 0.3 + 0.5
    z: Tensor = self.base(x.clamp(0, 1))
    return z


def _running(self: Defence, x: Tensor) -> Tensor:
    """Moved by the mean of all images that were seen."""
    mean = x.detach().mean()
    self.seen = [(mean, mean), *self.seen[:50]]
    z: Tensor = self.base((x + torch.stack([m for m, _ in self.seen]).mean() - 0.3).clamp(0, 1))
    return z


def _voted(self: Defence, x: Tensor) -> Tensor:
    z: Tensor = self.base(x)
    return z + z.mean(dim=0, keepdim=True)


_SEED = 5


def _permuted(gradient: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(gradient[0].numel(), generator=generator).to(gradient.device)
    return gradient.flatten(1)[:, order].view_as(gradient)


def _few_pixels(gradient: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    kept = torch.rand(gradient.shape[1:], generator=generator) < 0.1
    return gradient * kept.to(gradient)


PLANTED: dict[str, tuple[str, Callable[[Defence, Tensor], Tensor]]] = {
    # Rounding
    "quantised pixels": ("rounding", _on_pixels(lambda x: (x * 4).round() / 4)),
    "binary pixels": ("rounding", _on_pixels(lambda x: (x > 0.5).to(x))),
    "sign of pixels": ("rounding", _on_pixels(lambda x: torch.sign(x - 0.5) / 2 + 0.5)),
    "quantised logits": ("rounding", _on_logits(lambda z: (z / z.detach().abs().amax() * 8).round())),
    "one-hot logits": ("rounding", _on_logits(_hot)),
    "float16 logits": ("rounding", _on_logits(lambda z: (z * 1e-7).half().float())),
    # The graph is cut
    "detached pixels": ("cut graph", _on_pixels(lambda x: x.detach())),
    "no_grad": ("cut graph", _without_grad(torch.no_grad)),
    "inference_mode": ("cut graph", _without_grad(torch.inference_mode)),
    "JPEG file": ("cut graph", _on_pixels(_jpeg)),
    "through NumPy": ("cut graph", _on_pixels(lambda x: torch.from_numpy(np.round(x.numpy() * 16) / 16))),
    "8-bit pixels": ("cut graph", _on_pixels(lambda x: (x * 255).to(torch.uint8).to(x) / 255)),
    # Saturation
    "logits times 10,000": ("saturation", _on_logits(lambda z: z * 1e4)),
    "logits times 1e-42": ("saturation", _on_logits(lambda z: z * 1e-30 * 1e-12)),
    "softmax of large logits": ("saturation", _on_logits(lambda z: F.softmax(z * 20, dim=-1))),
    "log of saturated softmax": ("saturation", _on_logits(lambda z: (F.softmax(z * 20, dim=-1) + 1e-6).log())),
    "temperature by input": ("saturation", _on_logits(_confident)),
    "steep contrast": ("saturation", _on_pixels(lambda x: torch.sigmoid(300 * (x - 0.5)))),
    "clipped pixels": ("saturation", _on_pixels(lambda x: ((x - 0.45) * 30).clamp(0, 1))),
    # Chance
    "noise on pixels": ("chance", _on_pixels(lambda x: (x + 0.2 * torch.randn_like(x)).clamp(0, 1))),
    "noise on logits": ("chance", _on_logits(lambda z: z + z.detach().std() * torch.randn_like(z))),
    "random resizing": ("chance", _on_pixels(_resized)),
    "dropout of pixels": ("chance", _on_pixels(lambda x: F.dropout(x, 0.3, training=True).clamp(0, 1))),
    "one of two models": ("chance", lambda self, x: (self.base, self.decoy)[int(torch.randint(2, ()))](x)),
    # Other gradients
    "zero gradient": ("false gradient", _backward(torch.zeros_like)),
    "random gradient": ("false gradient", _backward(torch.randn_like)),
    "reversed gradient": ("false gradient", _backward(torch.neg)),
    "NaN gradient": ("false gradient", _backward(lambda g: g * float("nan"))),
    "vanishing gradient": ("false gradient", _backward(lambda g: g * 1e-30 * 1e-15)),
    "permuted gradient": ("false gradient", _backward(_permuted)),
    "constant gradient": ("false gradient", _backward(torch.ones_like)),
    "gradient of few pixels": ("false gradient", _backward(_few_pixels)),
    "gradient of another model": ("false gradient", _decoy_gradient),
    # Modes
    "another model while recording": ("mode", _recorded_decoy),
    "noise while recording": ("mode", _noise_for_gradients),
    "training mode": ("mode", _training_mode),
    # Batch and state
    "centred over the batch": ("batch", lambda self, x: self.base((x - x.mean(dim=0) + 0.3).clamp(0, 1))),
    "voted with the batch": ("batch", _voted),
    "running mean": ("state", _running),
    "first answer kept": ("state", _first_seen),
    "suspects after 30 calls": ("state", _counted),
    # Kept answers
    "cached clean answers": ("look-up", _looked_up(labels=False)),
    "cached answers, wide": ("look-up", _looked_up(labels=False, radius=4.0)),
    "cached answers, smooth": ("look-up", _looked_up(labels=False, radius=1.5, smooth=True)),
    "cached answers, slow gradient": ("look-up", _looked_up(labels=False, tiny=1e-2)),
    "memorised labels": ("look-up", _looked_up(labels=True)),
    "cached labels, added": ("look-up", _added),
    "constant answer": ("no answer", _on_logits(lambda z: torch.eye(z.shape[-1])[:1].expand(len(z), -1).to(z) * 5)),
    "suspects when smoothing disagrees": ("detection", _detected),
}
"""Name to kind and answer."""


def plant(name: str, case: Case) -> nn.Module:
    """Put a defence before a model."""
    return Defence(case, PLANTED[name][1]).eval()
