"""Prompts as weights of a plain CLIP model, where that is possible exactly.

Class features: a text tower without blocks, whose tokenizer knows every class name as one word, gives each class its feature.
A frame of pixels: patches are embedded linearly, so that its share is a constant, which the position embeddings take up.
Tokens in the image tower's sequence are rows that a plain model does not have; they cannot be baked in. They go into the weights
beside it, and code that the export carries puts them into the sequence (`apd.export.carried`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.errors import InputError
from apd.models.classifier import PromptedCLIP
from apd.models.huggingface import HuggingFaceEncoder

PIPELINE_TEMPLATE = "This is a photo of {}."
"""What the pipeline of transformers puts around a class name unless it is told otherwise."""
_RESERVED = ("<pad>", "<reserved 1>", "<reserved 2>", *(f"<reserved {i}>" for i in range(3, 9)))
_AT_LARGEST = 2
"""An end token of 2 makes transformers read a text at its largest token: the class name, next to padding."""


def why_not_plain(classifier: PromptedCLIP, open_vocabulary: bool) -> str | None:
    """Say in a sentence why these prompts cannot become weights of a plain CLIP model; None where they can."""
    if has_visual_tokens(classifier):
        assert classifier.prompts is not None
        n = len(classifier.prompts.visual()[0])
        return f"{n} visual tokens join the sequence of the image tower, for which a plain CLIP model has no weights"
    return why_not_but_visual(classifier, open_vocabulary)


def has_visual_tokens(classifier: PromptedCLIP) -> bool:
    """Whether tokens join the sequence of the image tower."""
    return classifier.prompts is not None and bool(classifier.prompts.visual())


def why_not_but_visual(classifier: PromptedCLIP, open_vocabulary: bool) -> str | None:
    """Say as `why_not_plain` does what cannot become weights of a plain CLIP model, visual tokens aside."""
    prompts, family = classifier.prompts, classifier.encoder.info.family
    if open_vocabulary and prompts is not None and prompts.text():
        return "learned text tokens act inside the text tower, for which a plain CLIP model has no weights"
    if family != "clip":
        return f"only those of CLIP can be baked in, and this model is a {family}"
    return None


def check_first_norm(encoder: HuggingFaceEncoder, form: str) -> None:
    """Refuse an image tower without the layer norm before its first block, which a plain CLIP model always has.

    Raises:
        InputError: see above.
    """
    if isinstance(getattr(encoder.model.vision_model, "pre_layrnorm", None), nn.Identity):
        raise InputError(
            f"{encoder.info.source} has no layer norm before the first block of its image tower (no_ln_pre), which the form "
            f"{form} cannot say; use --to onnx or torch."
        )


def texts_of(classifier: PromptedCLIP) -> list[tuple[str, int]]:
    """List the texts that stand for a class, and its index: its name, alone and in the usual sentences."""
    known: dict[str, int] = {}
    for template in ("{}", PIPELINE_TEMPLATE, *classifier.templates):
        for index, name in enumerate(classifier.class_names):
            known.setdefault(template.replace("{}", name), index)
    return list(known.items())


def class_tokenizer(texts: Sequence[str]) -> Any:
    """Make a tokenizer that knows whole texts as one token each, and refuses all others."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {text: index for index, text in enumerate((*_RESERVED, *texts))}
    # A word for unknown ones that is not in the vocabulary makes them an error instead of a wrong answer.
    backend = Tokenizer(WordLevel(words, unk_token="<unknown>"))
    return cast(Any, PreTrainedTokenizerFast)(tokenizer_object=backend, pad_token=_RESERVED[0], model_max_length=1)


@torch.no_grad()
def with_class_tower(encoder: HuggingFaceEncoder, rows: Tensor, frame: Tensor | None) -> nn.Module:
    """Copy a model, its text tower replaced by one that looks up features.

    The rows enter the final layer norm, which takes their mean away and scales them: they are turned into the plane of mean 0
    of one more dimension, where it only scales, and the projection turns them back.

    Args:
        encoder: CLIP or SigLIP.
        rows: features (T,D) of unit length, one per text of the tokenizer.
        frame: pixels to bake into the position embeddings; None for none.
    """
    old = encoder.model
    n, dim = rows.shape
    text = {
        **old.config.text_config.to_dict(),
        "vocab_size": n + len(_RESERVED),
        "hidden_size": dim + 1,
        "intermediate_size": 1,
        "num_hidden_layers": 0,
        "num_attention_heads": 1,
        "max_position_embeddings": 1,
        "eos_token_id": _AT_LARGEST,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    config = type(old.config).from_dict({**old.config.to_dict(), "text_config": text})
    new = type(old)(config).eval().requires_grad_(False)
    tower = new.text_model
    turn = _into_mean_zero(dim)
    new.load_state_dict(
        {
            name: value
            for name, value in old.state_dict().items()
            if not name.startswith(("text_model.", "text_projection."))
        },
        strict=False,
    )
    for parameter in tower.parameters():
        parameter.zero_()
    tower.final_layer_norm.weight.fill_(1.0)
    tower.embeddings.token_embedding.weight[len(_RESERVED) :] = rows.double().matmul(turn.T).float() * dim**0.5
    encoder.family.text_head(new).weight.copy_(turn.T)
    if frame is not None:
        _add_frame(encoder, new, frame)
    return cast(nn.Module, new)


def _into_mean_zero(dim: int) -> Tensor:
    """Orthonormal columns (D+1,D), in float64, that span the vectors of mean 0."""
    start = torch.cat(
        [torch.ones(dim + 1, 1, dtype=torch.float64), torch.eye(dim + 1, dim, dtype=torch.float64)], dim=1
    )
    return cast(Tensor, torch.linalg.qr(start)[0])[:, 1:]


@torch.no_grad()
def with_frame(encoder: HuggingFaceEncoder, frame: Tensor | None) -> nn.Module:
    """Copy a model with a frame of pixels in its position embeddings; the model itself where there is none."""
    if frame is None:
        return cast(nn.Module, encoder.model)
    new = copy.deepcopy(encoder.model)
    _add_frame(encoder, new, frame)
    return cast(nn.Module, new)


def _add_frame(encoder: HuggingFaceEncoder, model: Any, frame: Tensor) -> None:
    """Add to the position embeddings of the patches what they make of a frame of pixels."""
    own = encoder.model.vision_model.embeddings
    share = F.conv2d((frame / encoder.std[0])[None], own.patch_embedding.weight, stride=own.patch_size)[0].flatten(1).T
    model.vision_model.embeddings.position_embedding.weight[-len(share) :] += share
