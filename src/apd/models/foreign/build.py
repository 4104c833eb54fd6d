"""From renamed weights and a configuration to an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from apd.errors import InputError
from apd.models.families import SigLIP
from apd.models.foreign.layouts import SIGLIP_IMAGE, Tensors, Towers, join_pool
from apd.models.foreign.open_clip_config import Plan
from apd.models.huggingface import HuggingFaceEncoder, check_values
from apd.models.preprocessing import Preprocessing
from apd.util.text import printable


def build_encoder(
    plan: Plan,
    towers: Towers,
    tokenizer: Any,
    preprocessing: Preprocessing,
    source: str,
    revision: str | None,
    dtype: torch.dtype,
) -> HuggingFaceEncoder:
    """Make an encoder of a plan, and of the weights that it names.

    Raises:
        InputError: weights that are missing, too many, of another shape, or not numbers.
    """
    model = _model(plan, _weights(plan, towers, source), source, dtype)
    check_values(model, f"The CLIP at {source!r}")
    return HuggingFaceEncoder(model, tokenizer, preprocessing, source, revision, plan.family)


def _weights(plan: Plan, towers: Towers, source: str) -> Tensors:
    image, unknown = plan.image.convert(join_pool(towers.image) if plan.image is SIGLIP_IMAGE else towers.image)
    text, others = plan.text.convert(towers.text)
    if unknown or others:
        named = [f"visual.{name}" for name in unknown] + others
        raise InputError(
            f"{source}: the checkpoint has weights that its configuration has no place for: {printable(named[0])}; give both as "
            "they were published."
        )
    return {**image, **text, **_scales(plan, towers.rest)}


def _scales(plan: Plan, rest: Mapping[str, Tensor]) -> Tensors:
    """The factor of cosines and SigLIP's summand; a CLIP's, the same for all classes, changes no probability."""
    if isinstance(plan.family, SigLIP):
        return {name: value.reshape(1) for name, value in {"logit_bias": torch.zeros(1), **rest}.items()}
    return {name: value for name, value in rest.items() if name != "logit_bias"}


def _model(plan: Plan, weights: Tensors, source: str, dtype: torch.dtype) -> nn.Module:
    from transformers import CLIPModel, SiglipModel
    from transformers.utils import logging

    log = cast(Any, logging)
    log.disable_progress_bar()
    before = log.get_verbosity()
    log.set_verbosity_error()
    kind = cast(Any, SiglipModel if isinstance(plan.family, SigLIP) else CLIPModel)
    try:
        model, report = kind.from_pretrained(
            None,
            config=plan.config,
            state_dict={name: tensor.to(dtype) for name, tensor in weights.items()},
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        log.set_verbosity(before)
    missing = {name for name in report["missing_keys"] if not (plan.no_first_norm and "pre_layrnorm" in name)}
    for kind_of_problem, names in (("lacks", missing), ("has too many:", report["unexpected_keys"])):
        if names:
            raise InputError(
                f"{source}: the checkpoint {kind_of_problem} weights: {printable(sorted(names)[0])}; it is not whole, or "
                "not of this configuration. Get both again."
            )
    if report["mismatched_keys"]:
        name, held, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(
            f"{source}: weights {printable(name)} are of shape {tuple(held)}, but the configuration asks for {tuple(wanted)}."
        )
    if plan.no_first_norm:
        model.vision_model.pre_layrnorm = nn.Identity()
    return cast(nn.Module, model.eval())
