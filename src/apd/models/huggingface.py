"""CLIP and SigLIP in the Hugging Face format: towers walked block by block, so that tokens can enter between blocks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from apd.errors import InputError
from apd.models.checkpoint import check_config, check_no_code, square
from apd.models.encoder import DualEncoder, EncoderInfo, Tokens
from apd.models.families import Family, family_of
from apd.models.fast.blocks import append_rows, run_blocks
from apd.models.fast.chunks import in_chunks
from apd.models.fast.kernels import PatchEmbedding, linear
from apd.models.fast.prefix import Layout, end_states
from apd.models.hub import find_commit, unreachable
from apd.models.preprocessing import Preprocessing, read_preprocessing
from apd.util.extras import import_extra
from apd.util.tensors import sha256_of_weights

_FEWEST_TOKENS = 8
_LARGEST_LOGIT_SCALE = (
    5.3  # CLIP ends at ln 100 = 4.6, SigLIP near 4.8; a factor stored without its logarithm is far above
)
"""The transformers library invents a tokenizer of special tokens alone where its files are missing."""
_GRAPH_BYTES = 4 * 2**30
"""Largest graph of class features that is kept; beyond it classes go in chunks, computed again when gradients are."""
_ACTIVATIONS = 12
"""Floats kept for a gradient per row, block and unit of width, about."""


def _replace_rows(h: Tensor, rows: Tensor, start: int) -> Tensor:
    """``h`` (B, L, W) with rows start..start+n replaced by ``rows`` (n, W) or (B, n, W)."""
    rows = rows.to(h.dtype).expand(h.shape[0], -1, -1)
    return torch.cat([h[:, :start], rows, h[:, start + rows.shape[1] :]], dim=1)


class HuggingFaceEncoder(DualEncoder):
    """A `transformers` ``CLIPModel`` or ``SiglipModel`` as a `DualEncoder`.

    Without tokens, text features are bit-identical to ``get_text_features`` of the model, image features equal to
    ``get_image_features`` up to float rounding.
    """

    found_by_source: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        preprocessing: Preprocessing,
        source: str,
        revision: str | None,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        self.model = cast(Any, model.eval().requires_grad_(False))
        embeddings = self.model.vision_model.embeddings
        embeddings.patch_embedding = PatchEmbedding(embeddings.patch_embedding)
        config = self.model.config
        self.tokenizer, self.family = tokenizer, family or family_of(config.model_type, tokenizer)
        self.lower_case = _wants_lower_case(tokenizer, self.family.lower_case)
        # Text tokens start after the start token, if there is one.
        self._first_row = self.family.start_tokens
        text, vision = config.text_config, config.vision_config
        if self.family.one_activation and text.hidden_act != vision.hidden_act:
            raise InputError(
                f"{source}: towers disagree on the activation ({text.hidden_act}, {vision.hidden_act}); fix config.json."
            )
        if not getattr(vision, "vision_use_head", True):
            raise InputError(
                f"{source}: its image tower has no head (vision_use_head), so that an image has no feature."
            )
        self.info = EncoderInfo(
            source=source,
            revision=revision,
            family=self.family.model_type,
            image_size=vision.image_size,
            preprocessing=preprocessing,
            context_length=text.max_position_embeddings,
            embed_dim=self.family.embed_dim(config),
            text_width=text.hidden_size,
            visual_width=vision.hidden_size,
            text_depth=text.num_hidden_layers,
            visual_depth=vision.num_hidden_layers,
            causal_text=self.family.causal_text,
            logit_scale=float(self.model.logit_scale.exp()),
            logit_bias=self.family.logit_bias(self.model),
            weights_sha256=sha256_of_weights(self.model),
            tokenizer_sha256=_tokenizer_hash(tokenizer),
            architecture="; ".join((f"image: {_computed(vision)}", f"text: {_computed(text)}")),
        )
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def encode_image_by_block(self, x: Tensor, tokens: Tokens = ()) -> tuple[Tensor, Tensor]:
        """See `DualEncoder.encode_image_by_block`."""
        if not self.family.class_token:
            return super().encode_image_by_block(x, tokens)
        states: list[Tensor] = []
        features = self.encode_image(x, tokens, states)
        return features, torch.stack(states)

    def encode_image(self, x: Tensor, tokens: Tokens = (), states: list[Tensor] | None = None) -> Tensor:
        """See `DualEncoder.encode_image`; ``states`` takes the first row (B, width) after each block."""
        self.check_pixels(x)
        tower = self.model.vision_model
        h = tower.embeddings((x - self.mean) / self.std)
        n_patches = h.shape[1]
        if tokens:
            h = append_rows(h, tokens[0])
        h = self.family.before_blocks(self.model, h)
        class_token = torch.zeros(h.shape[0], dtype=torch.long, device=h.device) if self.family.class_token else None
        h = run_blocks(tower.encoder.layers, h, tokens, n_patches, class_token, first_rows=states)
        return self.family.image_features(self.model, h)

    def encode_text(self, ids: Tensor, tokens: Tokens = ()) -> Tensor:
        """See `DualEncoder.encode_text`."""
        if torch.compiler.is_exporting():  # where the ends of texts are not known yet, so that rows cannot be shared
            return self._encode_whole(ids.to(self.device), tokens)
        n_prefix = self._shared_rows(ids, tokens)
        if n_prefix:
            rows = int((self._pooled_positions(ids) - n_prefix + 1).sum())
            encode = self._encode_suffixes
        else:
            ids, rows, encode = ids.to(self.device), ids.numel(), self._encode_whole
        row_bytes = _ACTIVATIONS * 4 * self.info.text_width * self.info.text_depth
        return in_chunks(encode, ids, tokens, -(-rows * row_bytes // _GRAPH_BYTES))

    def _shared_rows(self, ids: Tensor, tokens: Tokens) -> int:
        """How many leading rows are the same for all classes at every layer; 0 where that cannot be relied on."""
        if not tokens or not self.info.causal_text or any(rows.dim() != 2 for rows in tokens):
            return 0
        start, n_prefix = ids[:, : self._first_row], self._first_row + len(tokens[0])
        same = bool((start == start[:1]).all()) and int(self._pooled_positions(ids).min()) >= n_prefix
        return n_prefix if same else 0

    def _encode_suffixes(self, ids: Tensor, tokens: Tokens) -> Tensor:
        ids, n_prefix = ids.cpu(), self._first_row + len(tokens[0])
        layout = Layout.of(ids, self._pooled_positions(ids), n_prefix).to(self.device)
        text = self.model.text_model
        ends = end_states(text, layout, tokens, self._first_row)
        return linear(self.family.text_head(self.model), text.final_layer_norm(ends))

    def _encode_whole(self, ids: Tensor, tokens: Tokens) -> Tensor:
        text = self.model.text_model
        h, pooled = self._embed_text(ids, tokens), self._pooled_positions(ids)
        if tokens:
            pooled = self._prompted_text(h, tokens, pooled)
        else:
            for block in text.encoder.layers:
                h = self._text_block(block, h)
            pooled = h[torch.arange(h.shape[0], device=h.device), pooled]
        return cast(Tensor, self.family.text_head(self.model)(text.final_layer_norm(pooled)))

    def _prompted_text(self, h: Tensor, tokens: Tokens, pooled: Tensor) -> Tensor:
        """The pooled rows (C, width) after the text blocks; attention does not mind that token rows are put last."""
        rows, first, n = torch.arange(h.shape[1], device=h.device), self._first_row, tokens[0].shape[-2]
        order = torch.cat([rows[:first], rows[first + n :], rows[first : first + n]])
        mask = order[:, None] >= order if self.info.causal_text else None
        blocks = self.model.text_model.encoder.layers
        return run_blocks(blocks, h[:, order], tokens, len(rows) - n, order.argsort()[pooled], mask)[:, 0]

    def _embed_text(self, ids: Tensor, tokens: Tokens) -> Tensor:
        embeddings = self.model.text_model.embeddings
        words = embeddings.token_embedding(ids)
        if tokens:
            words = _replace_rows(words, tokens[0], self._first_row)
        return cast(Tensor, embeddings(inputs_embeds=words))

    def _text_block(self, block: nn.Module, h: Tensor) -> Tensor:
        if self.info.causal_text:
            return cast(Tensor, block(h, None, is_causal=True))
        return cast(Tensor, block(h, None))

    def _pooled_positions(self, ids: Tensor) -> Tensor:
        """The row (C,) of each text that becomes its feature."""
        return self.family.pooled_positions(ids, self.model.config.text_config.eos_token_id)

    def prompt_ids(self, texts: Sequence[str], n_tokens: int = 0) -> Tensor:
        """See `DualEncoder.prompt_ids`."""
        length = self.info.context_length
        rows = []
        for text in texts:
            ids = self._tokens(text)
            self._check_ids(text, ids)
            # What is under a prompt token is replaced; an ordinary word leaves the end token the largest and the first.
            ids[self._first_row : self._first_row] = ids[self._first_row : self._first_row + 1] * n_tokens
            if len(ids) > length:
                raise InputError(
                    f"{text!r} with {n_tokens} prompt tokens takes {len(ids)} tokens, but the context of {self.info.source} "
                    f"holds {length}. Shorten the class name or the template."
                )
            rows.append(ids + [self._pad_id] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def _tokens(self, text: str) -> list[int]:
        # Not verbose: a text that is too long is refused above by its own name.
        return list(self.tokenizer(text.lower() if self.lower_case else text, verbose=False)["input_ids"])

    def _check_ids(self, text: str, ids: list[int]) -> None:
        """Refuse tokens of another model, and a text whose feature would not be read at its end token."""
        known = self.model.config.text_config.vocab_size
        if max(ids, default=0) >= known:
            raise InputError(
                f"{self.info.source}: the tokenizer makes token {max(ids)} of {text!r}, but the text tower knows {known} tokens: "
                "the tokenizer is that of another model. Restore its files."
            )
        end = self.model.config.text_config.eos_token_id
        if not self.family.is_read_at_last(ids, end):
            raise InputError(
                f"{self.info.source}: the text {text!r} does not end with the end token: text_config.eos_token_id is {end} in "
                f"config.json, but texts end with {ids[-1] if ids else 'nothing'}. Correct it, or restore the tokenizer."
            )

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    def trim(self, ids: Tensor) -> Tensor:
        """See `DualEncoder.trim`."""
        return ids[:, : int(self._pooled_positions(ids).max()) + 1]

    @torch.no_grad()
    def word_states(self, words: str, n_tokens: int) -> list[Tensor]:
        """See `DualEncoder.word_states`."""
        ids = self.prompt_ids([words])
        n_words = len(self._tokens(words)) - self._first_row - 1
        rows = slice(self._first_row, self._first_row + min(n_tokens, max(n_words, 0)))
        states = [self.model.text_model.embeddings.token_embedding(ids)[0, rows].clone()]
        h = self._embed_text(ids, ())
        for block in self.model.text_model.encoder.layers[:-1]:
            h = self._text_block(block, h)
            states.append(h[0, rows].clone())
        return states


def _wants_lower_case(tokenizer: Any, usual: bool) -> bool:
    """Whether texts are to be lower-cased because the checkpoint says so, or the family does, and its tokenizer does not."""
    asked = getattr(tokenizer, "init_kwargs", {}).get("do_lower_case", usual)
    return bool(asked) and tokenizer("A CAT")["input_ids"] != tokenizer("a cat")["input_ids"]


def _computed(tower: Any) -> str:
    """How a tower's weights are used, as far as their shapes leave it open."""
    return f"{tower.hidden_act}, {tower.num_attention_heads} heads, epsilon {tower.layer_norm_eps:g}"


def _tokenizer_hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_huggingface(source: str, folder_or_id: str, revision: str | None, dtype: torch.dtype) -> HuggingFaceEncoder:
    """Load a checkpoint of a supported family from a local folder or the hub (see `apd.load_clip`)."""
    from transformers import AutoConfig

    where: dict[str, Any] = {"trust_remote_code": False} | ({"revision": revision} if revision else {})
    try:
        config = AutoConfig.from_pretrained(folder_or_id, **where)
    except Exception as error:  # the libraries raise a dozen kinds for what is not a configuration
        raise InputError(unreachable(source, error) or f"No CLIP at {source!r}: {_first_line(error)}") from error
    check_config(config.to_dict(), source)
    vision = config.vision_config
    vision.image_size = square(vision.image_size, "vision_config.image_size", source)
    try:
        commit = None if Path(folder_or_id).is_dir() else find_commit(folder_or_id, source, revision)
        model, tokenizer, records = _read(folder_or_id, source, config, dtype, where)
    except InputError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds for a damaged file
        if re.search("sentencepiece|protobuf|tiktoken", str(error), re.IGNORECASE):
            for module in ("sentencepiece", "google.protobuf"):
                import_extra(module, "siglip", f"The tokenizer of {source}")
        problem = unreachable(source, error) or f"The CLIP at {source!r} cannot be read: {_first_line(error)}"
        raise InputError(problem) from error
    if not records:
        raise InputError(
            f"The CLIP at {source!r} has no preprocessor_config.json; copy the one of the model it was made from."
        )
    preprocessing = read_preprocessing(records[0], vision.image_size, source)
    return HuggingFaceEncoder(model, tokenizer, preprocessing, source, revision or commit)


def _read(
    folder_or_id: str, source: str, config: Any, dtype: torch.dtype, where: dict[str, Any]
) -> tuple[nn.Module, Any, list[Path]]:
    """Read the model, its tokenizer, and where its image processing is described."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.hub import cached_file

    log = cast(Any, logging)
    log.disable_progress_bar()
    before = log.get_verbosity()
    log.set_verbosity_error()  # weights that do not fit are refused below, in one line instead of a table
    try:
        model, report = AutoModel.from_pretrained(
            folder_or_id,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **where,
        )
    finally:
        log.set_verbosity(before)
    _check_weights(model, report, source)
    tokenizer = AutoTokenizer.from_pretrained(folder_or_id, **where)
    check_no_code(tokenizer.init_kwargs, "tokenizer_config.json", source)
    if len(tokenizer) < _FEWEST_TOKENS:
        raise InputError(
            f"The tokenizer of {source} knows {len(tokenizer)} tokens only; its files are missing: copy those of the model "
            "that this one was made from."
        )
    found = [
        cached_file(folder_or_id, name, _raise_exceptions_for_missing_entries=False, revision=where.get("revision"))
        for name in ("preprocessor_config.json", "processor_config.json")
    ]
    return model, tokenizer, [Path(path) for path in found if path]


def _check_weights(model: nn.Module, report: dict[str, Any], source: str) -> None:
    """Refuse weights that are not all of the model's, more than the model's blocks, or not numbers."""
    about = f"The CLIP at {source!r}"
    _refuse_renamed(about, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))
    if report["missing_keys"]:
        raise InputError(f"{about} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])}. Download it again.")
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, held, wanted = mismatched[0]
        raise InputError(
            f"{about} has weights {name} of shape {tuple(held)}, but config.json asks for {tuple(wanted)}; restore config.json."
        )
    beyond = sorted(name for name in report["unexpected_keys"] if ".encoder.layers." in name)
    if beyond:
        raise InputError(
            f"{about} has weights of more blocks than num_hidden_layers in config.json: {beyond[0]}; restore config.json."
        )
    check_values(model, about)


def check_values(model: nn.Module, about: str) -> None:
    """Refuse weights that are not numbers, and a logit scale that is not a logarithm.

    Args:
        model: with its weights.
        about: the subject of the message.

    Raises:
        InputError: naming the weights.
    """
    scale = float(cast(Any, model).logit_scale.detach())
    if scale > _LARGEST_LOGIT_SCALE:
        raise InputError(
            f"{about} has a logit_scale of {scale:g}, which means a factor of exp({scale:g}), beyond "
            f"exp({_LARGEST_LOGIT_SCALE}): store its logarithm."
        )
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise InputError(f"{about} has weights that are not finite numbers: {name}. Download it again.")


def _refuse_renamed(about: str, missing: list[str], others: list[str]) -> None:
    """Refuse weights that are there under other names: with a prefix, or as a model and an adapter."""
    adapters = [name for name in others if "lora_" in name]
    if adapters:
        raise InputError(
            f"{about} has weights of a LoRA adapter ({adapters[0]}): merge it into the model (merge_and_unload)."
        )
    for name in others:
        found = next((wanted for wanted in missing if name.endswith(f".{wanted}")), None)
        if found:
            raise InputError(
                f"{about} has weights whose names begin with {name.removesuffix(found)!r} ({name}): save them without it."
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # A heading says nothing without the line below it.
    text = " ".join(line.strip() for line in lines[: 2 if lines and lines[0].rstrip().endswith(":") else 1])
    return text or type(error).__name__
