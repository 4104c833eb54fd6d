"""The frozen parts of a tower, run by the fastest exact kernel: gradients reach activations, never weights."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_ONEDNN = bool(
    cast(Any, torch.backends.mkldnn).is_available()
) and torch.backends.cpu.get_cpu_capability().startswith("AVX")
_MULTIPLIES_BF16 = platform.machine().lower() not in ("x86_64", "amd64") or (
    cast(Any, torch.backends.mkldnn).is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
)
"""Whether this CPU's kernels do so; on x86 without AVX-512 torch multiplies bfloat16 by plain loops."""
_lowered: WeakKeyDictionary[nn.Linear, tuple[tuple[Any, ...], Tensor, Tensor | None]] = WeakKeyDictionary()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``, equal up to float rounding.

    On x86 CPUs float32 goes to oneDNN: the BLAS behind `torch.nn.functional.linear` leaves AVX-512 unused on some of them.
    Under autocast the weights are lowered once, where autocast would lower frozen weights at every call. On a CPU that does
    not multiply bfloat16, numbers are rounded to it and multiplied in float32, many times faster: its kernels, too, round
    only what goes in and what comes out.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return _linear(layer, x, layer.weight, layer.bias)
    dtype = torch.get_autocast_dtype(x.device.type)
    with without_autocast(x.device.type):
        return _linear(layer, _rounded(x, dtype), *_lower(layer, dtype)).to(dtype)


def _linear(layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _onednn(x) and not _trains(layer):
        return cast(Tensor, cast(Any, _OneDNNLinear).apply(x, weight, bias))
    return F.linear(x, weight, bias)


def multiplied_as(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which numbers of ``dtype`` are multiplied."""
    slow = dtype is torch.bfloat16 and device.type == "cpu" and not _MULTIPLIES_BF16
    return torch.float32 if slow else dtype


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers rounded to ``dtype``, in the type in which they are multiplied."""
    return x.to(dtype).to(multiplied_as(dtype, x.device))


def _rounded_bias(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else _rounded(bias, dtype)


def _trains(layer: nn.Linear | PatchEmbedding) -> bool:
    # Asked at every product, so not through `parameters`, which takes as long as a small product.
    return layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad)


def _onednn(x: Tensor) -> bool:
    # A graph for other runtimes gets the plain product: oneDNN's operator is known to this build of torch alone.
    if x.dtype is not torch.float32 or x.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    return _HAS_ONEDNN and bool(cast(Any, torch.backends.mkldnn).enabled)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` outside of any graph."""
    if multiplied_as(x.dtype, x.device) is not x.dtype:
        return _product(_rounded(x, x.dtype), _rounded(weight, x.dtype), _rounded_bias(bias, x.dtype)).to(x.dtype)
    if _onednn(x):
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    return F.linear(x, weight, bias)


def _differentiable_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` in a backward pass, which is itself differentiated where a second derivative is asked for."""
    return F.linear(x, weight) if torch.is_grad_enabled() else _product(x, weight)


def _lower(layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weights as rounded to ``dtype``, kept as long as the layer lives and its weights stay what and where they are."""
    weight, bias = layer.weight, layer.bias
    if _trains(layer):
        return _rounded(weight, dtype), _rounded_bias(bias, dtype)
    state = (
        dtype,
        multiplied_as(dtype, weight.device),
        *((t.data_ptr(), t._version) for t in layer.parameters(recurse=False)),
    )
    if layer not in _lowered or _lowered[layer][0] != state:
        with torch.inference_mode(False):  # what is kept must serve training too
            _lowered[layer] = (state, _rounded(weight, dtype), _rounded_bias(bias, dtype))
    return _lowered[layer][1:]


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Compute in the tensors' own types; an exported graph, which knows no autocast, gets no region for it."""
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device_type, enabled=False)


class _OneDNNLinear(torch.autograd.Function):
    """``x W^T + b`` and ``g W`` by oneDNN, for weights that take no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _differentiable_product(gradient, weight.t()), None, None


class _QuickGELU(torch.autograd.Function):
    """``x sigmoid(1.702 x) = silu(1.702 x) / 1.702``: one fused pass in each direction instead of eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(1.702 * x).div_(1.702)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # of a second derivative
            share = torch.sigmoid(1.702 * x)
            return cast(Tensor, gradient * share * (1 + 1.702 * x * (1 - share)))
        # The inner derivative 1.702 and the factor 1/1.702 cancel.
        return cast(Tensor, torch.ops.aten.silu_backward(gradient, 1.702 * x))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, ``x sigmoid(1.702 x)``."""
    if torch.compiler.is_exporting():
        return x * torch.sigmoid(1.702 * x)
    return cast(Tensor, cast(Any, _QuickGELU).apply(x))


class PatchEmbedding(nn.Module):
    """A frozen convolution whose patches do not overlap, with its input's gradient as one matrix product.

    The general convolution's input gradient takes eleven times its forward pass on a CPU (ViT-B/32).

    Args:
        convolution: whose weights are shared; stride as large as the kernel, no padding.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """Patch features (B, W, S/P, S/P) of pixels (B, 3, S, S)."""
        if _trains(self):
            return F.conv2d(x, self.weight, self.bias, stride=self.weight.shape[-1])
        return cast(Tensor, cast(Any, _Patches).apply(x, self.weight, self.bias))


class _Patches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.pixels = x.shape, x.dtype
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x, weight = _rounded(x, dtype), _rounded(weight, dtype)
        with without_autocast(device):
            return F.conv2d(x, weight, _rounded_bias(bias, dtype), stride=weight.shape[-1]).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (shape, dtype) = ctx.saved_tensors, ctx.pixels
        side, rows, columns = weight.shape[-1], *gradient.shape[-2:]
        channels_last = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        patches = _differentiable_product(channels_last, weight.flatten(1).t().to(gradient.dtype))
        patches = patches.view(-1, rows, columns, shape[1], side, side).permute(0, 3, 1, 4, 2, 5)
        covered = patches.reshape(-1, shape[1], rows * side, columns * side)
        rest = (0, shape[3] - columns * side, 0, shape[2] - rows * side)
        return F.pad(covered, rest).to(dtype), None, None
