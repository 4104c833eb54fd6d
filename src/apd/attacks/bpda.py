"""Gradients past steps that have none (BPDA, Athalye 2018, arXiv 1802.00420): forward the true step, backward a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Restarted, Watch
from apd.attacks.threat import ThreatModel
from apd.errors import InputError

Transform = Callable[[Tensor], Tensor]


class BPDA(nn.Module):
    """A step whose result is that of ``transform`` and whose gradient is that of ``stand_in``.

    Args:
        transform: from (B,...) to the same shape, differentiable or not: JPEG, rounding, a filter of another library.
        stand_in: a differentiable function near it; None: the identity.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 3, 2, 2, requires_grad=True)
        >>> rounded = BPDA(torch.round)(x)
        >>> bool((rounded == x.round()).all()), float(torch.autograd.grad(rounded.sum(), x)[0].sum())
        (True, 12.0)
    """

    def __init__(self, transform: Transform, stand_in: Transform | None = None) -> None:
        super().__init__()
        self.transform, self.stand_in = transform, stand_in

    def forward(self, x: Tensor) -> Tensor:
        """Return what ``transform`` makes of ``x`` (B,...).

        Raises:
            InputError: it changes the shape, and there is no stand-in of the new one.
        """
        with torch.no_grad():
            true = self.transform(x)
        soft = x if self.stand_in is None else self.stand_in(x)
        if soft.shape != true.shape:
            raise InputError(
                f"BPDA: the transform makes {tuple(true.shape)} of {tuple(x.shape)}, its stand-in {tuple(soft.shape)}; give a "
                "stand-in of the same shape."
            )
        return _straight(true, soft)


class Preprocessed(nn.Module):
    """A classifier with a preprocessing step before it, which attacks go through: the adaptive attack on such a defence.

    Args:
        classifier: pixels (B,3,H,W) in [0,1] to logits (B,C).
        transform: pixels to pixels of the same shape.
        stand_in: a differentiable function near ``transform``; None: its own gradient if it has one, else the identity.
    """

    def __init__(self, classifier: nn.Module, transform: Transform, stand_in: Transform | None = None) -> None:
        super().__init__()
        self.classifier, self.transform, self.stand_in = classifier, transform, stand_in
        self._blocked: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B,C) of the preprocessed images."""
        if self.stand_in is None and self._blocked is None:
            self._blocked = blocks(self.transform, x[:1], self.transform(x[:1]))
        past = self.stand_in is not None or self._blocked
        step = BPDA(self.transform, self.stand_in) if past else self.transform
        logits: Tensor = self.classifier(step(x))
        return logits


def blocks(step: Transform, given: Tensor, out: Tensor) -> bool:
    """Whether ``step``, which made ``out`` of ``given``, has the same shape at both ends and lets no gradient through.

    A step may be flat at one image, such as a square at black: it is looked at once more, at random values.
    """
    if out.shape != given.shape or not (given.is_floating_point() and out.is_floating_point()):
        return False
    if not _is_flat(step, given) or given.numel() == 0:
        return given.numel() == 0
    random = torch.rand(given.shape, generator=torch.Generator().manual_seed(0)).to(given)
    low, high = given.min().clamp(max=0.0), given.max().clamp(min=1.0)
    try:
        return _is_flat(step, low + (high - low) * random)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a step of somebody's own may refuse such values
        return True


def _is_flat(step: Transform, given: Tensor) -> bool:
    # Also for a caller in inference mode: the answer is kept, and it must not be that nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = given.detach().clone().requires_grad_()
        out = step(leaf)
        if not out.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(_mixed(out), leaf, allow_unused=True)
    return gradient is None or not bool(gradient.any())


def _mixed(out: Tensor) -> Tensor:
    """A sum in which no two values have the same weight: a plain one is constant for a softmax or a layer norm."""
    return (out.flatten() * torch.arange(1, out.numel() + 1, device=out.device).cos()).sum()


def _straight(true: Tensor, soft: Tensor) -> Tensor:
    """``true``, to the last bit, with the gradient of ``soft``."""
    return true.detach() + (soft - soft.detach())


@contextmanager
def bridged(model: nn.Module, x: Tensor) -> Iterator[list[str]]:
    """Lead gradients straight past what blocks them in ``model``, whose outputs stay as they are; yield what was found.

    Two things are found on one image of ``x`` (B,3,H,W): a module with outputs of its input's shape, through which no gradient
    passes; and, where code outside any module cuts the graph (``self.net(jpeg(x))``), the first module with an input of the
    images' shape.
    """
    found, names = _blocking(model, x[:1])
    pixels: list[Tensor] = []
    handles = [model.register_forward_pre_hook(lambda _, given: pixels.append(given[0]))] if found else []

    def past(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
        return _straight(out, given[0])

    def from_pixels(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_straight(given[0], pixels[-1]), *given[1:])

    for module, at_input in found:
        hook = module.register_forward_pre_hook(from_pixels) if at_input else module.register_forward_hook(past)
        handles.append(hook)
    handles += [model.register_forward_hook(lambda *_: pixels.clear())] if found else []
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _blocking(model: nn.Module, x: Tensor) -> tuple[list[tuple[nn.Module, bool]], list[str]]:
    """Modules that block gradients, innermost ones only, and whether the cut lies before their input; and their names."""
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if name:

            def keep(module: nn.Module, given: tuple[Any, ...], out: Any, name: str = name) -> None:
                if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(out, Tensor):
                    seen.append((name, module, given[0], out))

            handles.append(module.register_forward_hook(keep))
    leaf = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            model(leaf)
    finally:
        for handle in handles:
            handle.remove()
    blocking = {name: module for name, module, given, out in seen if blocks(module.forward, given, out)}
    inner = {n: m for n, m in blocking.items() if not any(other.startswith(f"{n}.") for other in blocking)}
    found: list[tuple[nn.Module, bool]] = [(module, False) for module in inner.values()]
    names = list(inner)
    entries = [(name, module, given) for name, module, given, _ in seen if given.shape == leaf.shape]
    if not found and entries:
        name, module, given = entries[0]
        if given is not leaf and _cut_off(given, leaf):
            found, names = [(module, True)], [f"before {name}"]
    return found, names


def _cut_off(given: Tensor, leaf: Tensor) -> bool:
    if not given.requires_grad:
        return True
    (gradient,) = torch.autograd.grad(_mixed(given), leaf, retain_graph=True, allow_unused=True)
    return gradient is None or not bool(gradient.any())


_PGD = Restarted()


@dataclass(frozen=True)
class StraightThrough(EvaluationAttack):
    """PGD on the margin whose gradient leads straight past what blocks it; see `bridged`.

    Args:
        inner: the attack.
        only_if_blocked: leave images as they are where nothing blocks a gradient.
    """

    inner: Restarted = _PGD
    only_if_blocked: bool = False
    name: str = "bpda"

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the model's own gradients: it makes up for those that are missing."""
        return False

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch if no sample is fooled; one with a gradient counts twice."""
        return (3,) if self.only_if_blocked else (3 + sum(self.inner.part_passes(n_classes)),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch``.

        Raises:
            InputError: no gradient reaches the pixels all the same.
        """
        watch.begin(self.name)
        with bridged(model, batch.x) as found:
            if self.only_if_blocked and not found:
                return Found(batch.x, [self.name] * len(batch))
            try:
                images = self.inner(model, batch, threat).images
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise InputError(
                    f"bpda finds no way past what cuts the gradient ({str(error).splitlines()[0][:90]}); make the step a module, "
                    "apd.attacks.BPDA(step), or use --attack square."
                ) from error
        return Found(images, [self.name] * len(batch))
