"""Training settings that several papers share, for ``preset: published``.

The public code of these papers warms up for one epoch at a constant 1e-5; ours warms up linearly. ``words: ""`` starts the
context at random. Depths are those of ViT-B towers: on a shallower one they are refused, and ``all`` set explicitly wins.
"""

from __future__ import annotations

from typing import Any


def dassl(lr: float, epochs: int, batch: int) -> dict[str, Any]:
    """Training as in CoOp's code base (Zhou 2022), on which most of prompt learning is built: SGD, crops and flips."""
    return {
        "train.optimizer.name": "sgd",
        "train.optimizer.lr": lr,
        "train.optimizer.momentum": 0.9,
        "train.optimizer.weight_decay": 5e-4,
        "train.optimizer.clip": None,
        "train.epochs": epochs,
        "train.warmup_epochs": 1.0,
        "train.batch_size": batch,
        "train.augment.scale": [0.08, 1.0],
    }


def pgd(eps: str, steps: int, step_size: float) -> dict[str, Any]:
    """The training attack: eps in [0,1] pixel units, the step as a fraction of it, from a random start."""
    return {
        "train.eps": eps,
        "train.attack.kind": "pgd",
        "train.attack.steps": steps,
        "train.attack.step_size": step_size,
        "train.attack.random_start": True,
    }


def tokens(branch: str, n: int, depth: int | str) -> dict[str, Any]:
    """Tokens of one branch: ``text`` or ``visual``."""
    return {f"method.prompts.{branch}_tokens": n, f"method.prompts.{branch}_depth": depth}
