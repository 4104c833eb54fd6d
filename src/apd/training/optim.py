"""How prompts are updated: optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from apd.settings.train import OptimizerSettings


def build_optimizer(settings: OptimizerSettings, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of ``settings`` over ``parameters``; its learning rate is set anew before each step."""
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    if settings.name == "radam":
        return torch.optim.RAdam(
            parameters, lr=settings.lr, weight_decay=settings.weight_decay, decoupled_weight_decay=True
        )
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to 0 at ``steps`` (step counts from 0).

    >>> [round(learning_rate(s, 4, 2, 1.0), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmed_up(step: int, warmup: int, start: float, wait: int = 0) -> float:
    """Share of the full eps at a step: 0 for ``wait`` steps, linear from ``start`` to 1 over ``warmup`` steps, then 1.

    >>> [warmed_up(s, 4, 0.2, wait=1) for s in (0, 2, 4, 10)]
    [0.0, 0.6, 1.0, 1.0]
    """
    if step < wait:
        return 0.0
    step -= wait
    return start + (1 - start) * min(1.0, (step + 1) / warmup) if warmup else 1.0


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors (``optimizer.<parameter number>.<name>``), for a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{name}": value
        for number, entries in state.items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
