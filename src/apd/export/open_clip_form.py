"""The open_clip form: a state dict under open_clip's names, its configuration, and the class features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.errors import InputError
from apd.export.baked import check_first_norm, has_visual_tokens, why_not_but_visual, with_frame
from apd.export.base import Form, Runner, Source
from apd.export.carried import OPEN_CLIP, copy_to
from apd.models.huggingface import HuggingFaceEncoder
from apd.models.preprocessing import Preprocessing
from apd.util.files import write_atomic
from apd.util.tensors import read_tensors, write_tensors
from apd.util.text import to_json

CONFIG, WEIGHTS, FEATURES = "open_clip_config.json", "open_clip_model.safetensors", "class_features.safetensors"
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
"""Those that open_clip has, and its setting ``quick_gelu``."""
_TOKENS = "visual.prompts"
"""Weights that open_clip's own models do not have, so that open_clip refuses them unless the code of the folder adds them."""
_FILTERS = ("bicubic", "bilinear")
_EPS = 1e-5
_OPENAI_WORDS = 49_408


class OpenClipForm(Form):
    """A folder for ``open_clip.create_model`` with class features to compare image features with.

    Where there are visual tokens, the folder carries a module that loads it; open_clip alone refuses its weights.

    open_clip is not needed to write it. The check computes the image tower (and the text tower, if it is used) in `tower`,
    which knows only the written files and open_clip's conventions.
    """

    name: ClassVar[str] = "open_clip"
    one_feature_per_class: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        """See `Form.check`."""
        super().check(source)
        encoder = source.classifier.encoder
        why_not = why_not_but_visual(source.classifier, source.settings.open_vocabulary)
        if why_not is not None:
            raise InputError(
                f"--to open_clip cannot hold these prompts: {why_not}. Use --to onnx or torch"
                + (", or huggingface." if encoder.info.family in ("clip", "siglip") else ".")
            )
        assert isinstance(encoder, HuggingFaceEncoder)
        check_first_norm(encoder, "open_clip")
        if (filter_ := encoder.info.preprocessing.interpolation) not in _FILTERS:
            raise InputError(
                f"{encoder.info.source} resizes images by {filter_} interpolation, open_clip only by {' or '.join(_FILTERS)}; "
                "use --to onnx, torch or huggingface."
            )
        config = encoder.model.config
        for tower in (config.text_config, config.vision_config):
            if tower.hidden_act not in _ACTIVATIONS or tower.layer_norm_eps != _EPS:
                raise InputError(
                    f"{encoder.info.source} has the activation {tower.hidden_act} and layer norms with eps "
                    f"{tower.layer_norm_eps}, which open_clip's CLIP does not have; use --to onnx."
                )

    def write(self, source: Source, place: Path) -> dict[str, Any]:
        """See `Form.write`."""
        classifier = source.classifier
        encoder, bound = classifier.encoder, classifier.bind_detached()
        assert isinstance(encoder, HuggingFaceEncoder)
        place.mkdir()
        prompted = classifier.prompts is not None and bool(classifier.prompts.text())
        state = renamed(with_frame(encoder, bound.frame).state_dict())
        state |= {f"{_TOKENS}.{depth}": rows for depth, rows in enumerate(bound.visual)}
        write_atomic(place / CONFIG, to_json(_config(encoder)) + "\n")
        write_tensors(place / WEIGHTS, state, {"format": "pt"})
        write_tensors(place / FEATURES, {"class_features": bound.classes}, {"format": "pt"})
        encoder.tokenizer.save_pretrained(place)
        how = encoder.info.preprocessing
        notes = []
        if prompted:
            notes.append(f"The learned text is in {FEATURES} alone: encode_text gives features without prompts.")
        if has_visual_tokens(classifier):
            copy_to(place, OPEN_CLIP)
            notes.append(
                f"open_clip alone refuses these weights, since they hold visual tokens: load() of {OPEN_CLIP}, which is in "
                "the folder, loads them."
            )
        elif how.mode == "crop" and how.resize != how.size:
            notes.append(
                f"open_clip resizes the short side to {how.size} px, this run was trained after resizing to {how.resize} px and "
                "cropping; prepare images as the description says."
            )
        code = {"code": OPEN_CLIP} if has_visual_tokens(classifier) else {}
        return {"notes": notes, "text_tower_unused": prompted, **code}

    def load(self, source: Source, place: Path) -> list[Runner]:
        """See `Form.load`."""
        state, _ = read_tensors(place / WEIGHTS, "export again")
        features, _ = read_tensors(place / FEATURES, "export again")
        how, config = source.classifier.encoder.info.preprocessing, _config(source.classifier.encoder)["model_cfg"]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
        scale = state["logit_scale"].exp()

        def logits(x: Tensor) -> Tensor:
            images = F.normalize(tower(state, config, (x - mean) / std), dim=-1)
            return scale * images @ features["class_features"].T

        return [logits]


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of a ``CLIPModel`` open_clip's names and shapes."""
    found: dict[str, Tensor] = {"logit_scale": state["logit_scale"]}
    image, text = "vision_model.", "text_model."
    found["visual.class_embedding"] = state[f"{image}embeddings.class_embedding"]
    found["visual.conv1.weight"] = state[f"{image}embeddings.patch_embedding.weight"]
    found["visual.positional_embedding"] = state[f"{image}embeddings.position_embedding.weight"]
    found["token_embedding.weight"] = state[f"{text}embeddings.token_embedding.weight"]
    found["positional_embedding"] = state[f"{text}embeddings.position_embedding.weight"]
    norms = {
        "visual.ln_pre": f"{image}pre_layrnorm",
        "visual.ln_post": f"{image}post_layernorm",
        "ln_final": f"{text}final_layer_norm",
    }
    for new, old in norms.items():
        found |= {f"{new}.{part}": state[f"{old}.{part}"] for part in ("weight", "bias")}
    found["visual.proj"] = state["visual_projection.weight"].T
    found["text_projection"] = state["text_projection.weight"].T
    for new, old in (("visual.transformer", image), ("transformer", text)):
        found |= dict(_blocks(state, f"{new}.resblocks", f"{old}encoder.layers"))
    return found


def _blocks(state: Mapping[str, Tensor], new: str, old: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a tower's blocks; queries, keys and values become one matrix."""
    parts = {
        "ln_1": "layer_norm1",
        "attn.out_proj": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    depth = 0
    while f"{old}.{depth}.layer_norm1.weight" in state:
        for kind in ("weight", "bias"):
            joined = [state[f"{old}.{depth}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            yield f"{new}.{depth}.attn.in_proj_{kind}", torch.cat(joined)
            for to, part in parts.items():
                yield f"{new}.{depth}.{to}.{kind}", state[f"{old}.{depth}.{part}.{kind}"]
        depth += 1


def _config(encoder: Any) -> dict[str, Any]:
    """Write the geometry and the preprocessing as ``open_clip_config.json`` has them."""
    config, how = encoder.model.config, encoder.info.preprocessing
    text, vision = config.text_config, config.vision_config
    end = text.eos_token_id
    reads = {} if end in (2, text.vocab_size - 1) else {"pool_type": "eos", "eos_id": end}
    words = {} if text.vocab_size == _OPENAI_WORDS else {"hf_tokenizer_name": "."}
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": _ACTIVATIONS[vision.hidden_act],
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                **reads,
                **words,
            },
        },
        "preprocess_cfg": _preprocess(how),
    }


def _preprocess(how: Preprocessing) -> dict[str, Any]:
    return {
        "mean": list(how.mean),
        "std": list(how.std),
        "interpolation": how.interpolation,
        "resize_mode": "shortest" if how.mode == "crop" else "squash",
    }


def tower(state: Mapping[str, Tensor], config: Mapping[str, Any], x: Tensor) -> Tensor:
    """Compute image features (B,D) of normalised pixels (B,3,S,S) as open_clip's ``VisionTransformer`` does.

    Written from open_clip's conventions, with torch's own attention, and apart from the towers in `apd.models`.
    """
    geometry = config["vision_cfg"]
    h = F.conv2d(x, state["visual.conv1.weight"], stride=geometry["patch_size"]).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    h = torch.cat([first, h], dim=1) + state["visual.positional_embedding"]
    n_own = h.shape[1]
    h = _norm(_with_tokens(h, state, 0, n_own), state, "visual.ln_pre")
    heads = geometry["width"] // geometry["head_width"]
    for depth in range(geometry["layers"]):
        h = h if depth == 0 else _with_tokens(h, state, depth, n_own)
        h = _block(h, state, f"visual.transformer.resblocks.{depth}", heads, config["quick_gelu"])
    return _norm(h[:, 0], state, "visual.ln_post") @ state["visual.proj"]


def _with_tokens(h: Tensor, state: Mapping[str, Tensor], depth: int, n_own: int) -> Tensor:
    """Put the visual tokens of a block, if it has some, after the tower's own rows, in place of what is there."""
    tokens = state.get(f"{_TOKENS}.{depth}")
    return h if tokens is None else torch.cat([h[:, :n_own], tokens.expand(len(h), -1, -1)], dim=1)


def _norm(h: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _block(h: Tensor, state: Mapping[str, Tensor], name: str, heads: int, quick: bool) -> Tensor:
    """One residual attention block on (B,L,width)."""
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    x = _norm(h, own, "ln_1").transpose(0, 1)
    in_weight, in_bias = own["attn.in_proj_weight"], own["attn.in_proj_bias"]
    out_weight, out_bias = own["attn.out_proj.weight"], own["attn.out_proj.bias"]
    width = h.shape[-1]
    gathered, _ = F.multi_head_attention_forward(
        x, x, x, width, heads, in_weight, in_bias, None, None, False, 0.0, out_weight, out_bias, need_weights=False
    )
    h = h + gathered.transpose(0, 1)
    x = F.linear(_norm(h, own, "ln_2"), own["mlp.c_fc.weight"], own["mlp.c_fc.bias"])
    x = x * torch.sigmoid(1.702 * x) if quick else F.gelu(x)
    return h + F.linear(x, own["mlp.c_proj.weight"], own["mlp.c_proj.bias"])
