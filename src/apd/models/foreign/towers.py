"""``BASE+FILE``: a model with the weights of a fine-tuned tower, as FARE, TeCoA and their like publish it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from apd.errors import InputError
from apd.models.families import SigLIP
from apd.models.foreign.layouts import IMAGE, SIGLIP_IMAGE, SIGLIP_TEXT, TEXT, Tensors, Towers, join_pool
from apd.models.foreign.open_clip import state_dict
from apd.models.huggingface import HuggingFaceEncoder, check_values
from apd.util.tensors import sha256_of_weights
from apd.util.text import printable
from apd.util.torch_files import read_torch_file

_TOWERS = {"image": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}


def with_tower(base: HuggingFaceEncoder, file: Path, source: str) -> HuggingFaceEncoder:
    """Put the weights of a file into a model, in place: its image tower, and its text tower if the file has one.

    Args:
        base: the model that the tower was made from; architecture, tokenizer and preprocessing stay its own.
        file: weights named as by open_clip (``visual.conv1.weight`` or ``conv1.weight``) or by `transformers`.
        source: how the user calls the result.

    Raises:
        InputError: a tower of another architecture, or one that is not whole.
    """
    own = {name: tuple(value.shape) for name, value in base.model.state_dict().items()}
    given = _renamed(state_dict(read_torch_file(file, source), source), base, file)
    _check_shapes(given, own, file, base.info.source)
    for tower, parts in _TOWERS.items():
        missing = [name for name in own if name.startswith(parts) and name not in given]
        if missing and (tower == "image" or any(name.startswith(parts) for name in given)):
            raise InputError(f"{file} holds no whole {tower} tower for {base.info.source}: {missing[0]} is missing.")
    model = base.model
    model.load_state_dict({name: value.to(model.logit_scale.dtype) for name, value in given.items()}, strict=False)
    check_values(model, str(file))
    base.info = replace(
        base.info,
        source=source,
        weights_sha256=sha256_of_weights(model),
        logit_scale=float(model.logit_scale.exp()),
        logit_bias=base.family.logit_bias(model),
    )
    return base


def _check_shapes(given: Tensors, own: Mapping[str, tuple[int, ...]], file: Path, base: str) -> None:
    for name, value in given.items():
        if name not in own:
            raise InputError(
                f"{file} has weights {printable(name)}, for which {base} has no place; give the model that the tower "
                "was made from."
            )
        if tuple(value.shape) != own[name]:
            raise InputError(
                f"{file} has weights {printable(name)} of shape {tuple(value.shape)}, but {base} has {own[name]}; give the model "
                "that the tower was made from."
            )


def _renamed(tensors: Mapping[str, Tensor], base: HuggingFaceEncoder, file: Path) -> Tensors:
    """Name weights as the model does."""
    if any(name.startswith("vision_model.") for name in tensors):
        found = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
        if (
            "visual_projection.weight" in base.model.state_dict()
        ):  # which a CLIPVisionModel leaves out and does not change
            found.setdefault("visual_projection.weight", base.model.visual_projection.weight.detach())
        return found
    if not any(name.startswith("visual.") for name in tensors):
        tensors = {f"visual.{name}": value for name, value in tensors.items()}
    towers, siglip = Towers.of(tensors), isinstance(base.family, SigLIP)
    image = {name.removeprefix("trunk."): value for name, value in towers.image.items()}
    named, unknown = SIGLIP_IMAGE.convert(join_pool(image)) if siglip else IMAGE.convert(image)
    texts, others = (SIGLIP_TEXT if siglip else TEXT).convert(towers.text)
    if unknown or others:
        odd = [f"visual.{name}" for name in unknown] + others
        raise InputError(f"{file} has weights {printable(odd[0])}, which are not those of a CLIP's towers.")
    scales = {name: value.reshape(base.model.logit_scale.shape) for name, value in towers.rest.items()}
    return {**named, **texts, **{name: value for name, value in scales.items() if siglip or name == "logit_scale"}}
