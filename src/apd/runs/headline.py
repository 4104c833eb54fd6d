"""Which evaluation says most about a run: the one that its model card and its report open with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apd.attacks.threat import parse_eps

if TYPE_CHECKING:
    from apd.settings.train import TrainSettings


def of_own_data(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of the data that its run was trained on; results that do not say so go by the data's name."""
    known = result.get("own_data")
    return bool(result["data"] == manifest["data"]["name"] if known is None else known)


def weight(
    result: Mapping[str, Any], manifest: Mapping[str, Any] | None, train: TrainSettings | None
) -> tuple[object, ...]:
    """How much an evaluation says, to be compared with that of others.

    Attacked before clean, the run's own data, uncorrupted test images and its threat model before others; of these the one
    on most images, and of as many the lowest accuracy.

    Args:
        result: as JSON has it (`apd.evaluation.Result.to_dict`).
        manifest: content of the run's ``run.json``; None for a classifier that is not a run.
        train: the run's section ``train``, likewise.
    """
    return (
        bool(result["attacks"]),
        manifest is not None and of_own_data(result, manifest),
        result.get("corruption") is None,
        result["split"] == "test",
        train is not None and _is_threat_of(result, train),
        result["n"],
        -result["worst"]["accuracy"],
    )


def _is_threat_of(result: Mapping[str, Any], train: TrainSettings) -> bool:
    # Rounded, as texts are.
    eps = parse_eps(train.eps, train.norm)
    return bool(result["norm"] == train.norm) and math.isclose(result["eps"], eps, rel_tol=1e-5)
