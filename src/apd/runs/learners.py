"""Prompt learners of other code: which tensors CoOp, MaPLe and FAP save, and what they mean.

All three save with dassl: ``state_dict`` in a ``.pth.tar``, beside optimiser and scheduler. Names are those of the learner,
with ``prompt_learner.`` before them where the whole model was saved.

- CoOp (Zhou 2022): ``ctx`` at the first text block, one context or one per class.
- MaPLe (Khattak 2023): ``ctx`` and ``compound_prompts_text.N`` at the text blocks; the image blocks have ``proj`` of ``ctx`` and
  ``compound_prompt_projections.N`` of the others.
- FAP (Zhou 2024): ``ctx`` at the first text block and ``proj`` of it at the first image block, as MaPLe; then
  ``compound_prompts_image.N`` at the image blocks, and ``compound_prompt_projections.N`` of them at the text blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.errors import InputError
from apd.util.text import printable
from apd.util.torch_files import read_torch_file

Form = Literal["coop", "maple", "fap"]
FORMS: tuple[str, ...] = get_args(Form)

_DEEP = {"maple": "compound_prompts_text", "fap": "compound_prompts_image"}
_LEARNER = "prompt_learner."
_IMAGE = "image_encoder."
_KNOWN = re.compile(
    r"ctx|token_(pre|suf)fix|compound_prompts_(text|image)\.\d+|(proj|compound_prompt_projections\.\d+)\.(weight|bias)"
)
"""What the learners of the three hold."""


@dataclass(frozen=True)
class Learned:
    """What a checkpoint holds, in float32.

    Args:
        text: tokens (n, width), or (C, n, width) of a context per class, block by block.
        visual: tokens (n, width), block by block; empty for CoOp.
        suffix: embedded texts (C, L - 1 - n, width) after the context, as the code saw them; None where they were not saved.
        image: weights of the image tower, by OpenAI's names; empty where they were not saved.
    """

    text: list[Tensor]
    visual: list[Tensor]
    suffix: Tensor | None
    image: Mapping[str, Tensor] = field(default_factory=dict)


def read_learner(file: Path, form: str) -> Learned:
    """Find the prompts in a checkpoint.

    Args:
        file: ``model.pth.tar-N``.
        form: whose code saved it, one of `FORMS`.

    Raises:
        InputError: a file that cannot be read; tensors that are missing, or of another form.
    """
    source = str(file)
    content = read_torch_file(file, source)
    if form not in FORMS:
        raise InputError(f"No form {form!r} of checkpoints; known are {', '.join(FORMS)}.")
    tensors, others = _learner(content, source)
    _check_known(tensors, others, source)
    image = {
        name.removeprefix(_IMAGE).removeprefix("module."): value
        for name, value in others.items()
        if name.startswith(_IMAGE)
    }
    found = _form(tensors)
    if found != form and not (form == "fap" and found == "maple" and not any(map(_is_deep, tensors))):
        raise InputError(
            f"{source} is not of the form {form}: its tensors are those of {found}. Say so: --form {found}, or --classifier "
            f"{found}:FILE."
        )
    suffix = tensors.get("token_suffix")
    text = [_tensor(tensors, "ctx", source)]
    if text[0].dim() not in (2, 3):
        raise InputError(f"{source}: ctx has shape {tuple(text[0].shape)}, but is (n, width), or (classes, n, width).")
    if form == "coop":
        return Learned(text, [], suffix, image)
    if text[0].dim() != 2:
        raise InputError(f"{source}: ctx has shape {tuple(text[0].shape)}; {form} has one context for all classes.")
    count = sum(name.startswith(f"{_DEEP[form]}.") for name in tensors)
    deep = [_tensor(tensors, f"{_DEEP[form]}.{number}", source) for number in range(count)]
    mapped = [
        _linear(tensors, f"compound_prompt_projections.{number}", rows, source) for number, rows in enumerate(deep)
    ]
    visual = [_linear(tensors, "proj", text[0], source)]
    text_deep, visual_deep = (deep, mapped) if form == "maple" else (mapped, deep)
    return Learned(text + text_deep, visual + visual_deep, suffix, image)


def _learner(content: Any, source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the prompt learner, by their names in it, and those of the rest of the model."""
    entry = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(entry, Mapping):
        raise InputError(f"{source} holds no state_dict; give a checkpoint of a prompt learner (model.pth.tar-N).")
    tensors = {str(name).removeprefix("module."): value for name, value in entry.items() if isinstance(value, Tensor)}
    tensors = {name: value.float() for name, value in tensors.items()}
    if not any(name.startswith(_LEARNER) for name in tensors):
        return tensors, {}
    own = {name.removeprefix(_LEARNER): value for name, value in tensors.items() if name.startswith(_LEARNER)}
    return own, {name: value for name, value in tensors.items() if not name.startswith(_LEARNER)}


def _check_known(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], source: str) -> None:
    """Refuse what would be lost: learned tensors that none of the three has, as of CoCoOp (``meta_net``) or IVLP (``VPT``)."""
    odd = [name for name in tensors if not _KNOWN.fullmatch(name)] if "ctx" in tensors else []
    odd += [name for name in others if "VPT" in name]
    if odd:
        raise InputError(
            f"{source} has learned tensors that the code of {', '.join(FORMS)} does not know, such as {printable(odd[0])}: it is "
            "of another method, whose prompts are more than these."
        )


def _form(tensors: Mapping[str, Tensor]) -> str:
    """Tell the form by the names of the tensors."""
    for form, name in _DEEP.items():
        if any(each.startswith(f"{name}.") for each in tensors):
            return form
    return "maple" if "proj.weight" in tensors else "coop"


def _is_deep(name: str) -> bool:
    """Whether a tensor is of a deeper block; with one block MaPLe's and FAP's prompts are the same."""
    return name.startswith("compound_")


def _tensor(tensors: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    if name not in tensors:
        known = printable(", ".join(sorted(tensors)[:4])) or "no tensors, at its top or in state_dict"
        raise InputError(f"{source} has no tensor {name}; it holds {known}.")
    if not tensors[name].isfinite().all():
        raise InputError(f"{source}: {name} has values that are not finite numbers: its training has diverged.")
    return tensors[name]


def _linear(tensors: Mapping[str, Tensor], name: str, rows: Tensor, source: str) -> Tensor:
    weight, bias = (_tensor(tensors, f"{name}.{part}", source) for part in ("weight", "bias"))
    if weight.dim() != 2 or rows.dim() != 2 or weight.shape[1] != rows.shape[1] or bias.shape != weight.shape[:1]:
        raise InputError(
            f"{source}: {name}.weight of shape {tuple(weight.shape)} does not fit its prompts {tuple(rows.shape)}."
        )
    with torch.no_grad():
        return F.linear(rows, weight, bias)
