"""The objectives of training: pure functions of logits and features, each with its formula and source.

``z`` are logits (B, C) with the logit scale included, ``p = softmax(z / tau)``; every function returns a scalar, the mean
over the batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(z: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """``CE(z, y)``, with label smoothing (Szegedy 2016) if asked."""
    return F.cross_entropy(z, labels, label_smoothing=smoothing)


def kl_per_sample(z_target: Tensor, z: Tensor, tau: float = 1.0) -> Tensor:
    """``tau^2 * KL(softmax(z_target / tau) || softmax(z / tau))``, one value a sample (B,) (Hinton 2015)."""
    log_target, log_p = F.log_softmax(z_target / tau, dim=-1), F.log_softmax(z / tau, dim=-1)
    return F.kl_div(log_p, log_target, reduction="none", log_target=True).sum(dim=-1) * tau**2


def distillation(z_teacher: Tensor, z_student: Tensor, tau: float = 1.0) -> Tensor:
    """``tau^2 * KL(p_T || p_S)``, the mean over the batch; the term of ARD (Goldblum 2020) and RSLAD (Zi 2021)."""
    return kl_per_sample(z_teacher, z_student, tau).mean()


def introspection(z_teacher: Tensor, z_student: Tensor, z_clean: Tensor, trust: Tensor, tau: float = 1.0) -> Tensor:
    """``mean[ w * KL(p_T || p_S(x')) + (1 - w) * KL(p_S(x) || p_S(x')) ]`` with trust ``w`` (B,) (IAD, Zhu 2022).

    The teacher is followed as far as it is right on x'; the student's own clean prediction (detached by the caller) fills
    the rest.
    """
    follow = kl_per_sample(z_teacher, z_student, tau)
    introspect = kl_per_sample(z_clean, z_student, tau)
    return (trust * follow + (1 - trust) * introspect).mean()


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """``mean[ 1 - cos(a, b) ]`` of features (N, D)."""
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()
