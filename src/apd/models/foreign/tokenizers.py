"""Tokenizers of models that come without files of their own: the original CLIP's, embedded, and what open_clip asks for."""

from __future__ import annotations

import lzma
import string
from importlib.resources import files
from typing import Any, cast

from apd.errors import InputError

CLIP_VOCABULARY = 49408
"""Tokens of the original CLIP."""


def clip_tokenizer(length: int) -> Any:
    """The original CLIP's byte pair encoding, as `transformers` builds it from the files of ``openai/clip-vit-*``.

    Args:
        length: most tokens of a text.
    """
    from transformers import CLIPTokenizer

    packed = (files("apd") / "assets" / "clip-bpe" / "merges.txt.xz").read_bytes()
    merges = [(first, second) for first, _, second in map(_split, lzma.decompress(packed).decode().splitlines())]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return cast(Any, CLIPTokenizer)(vocab=vocabulary, merges=merges, model_max_length=length)


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(" ")


def _byte_letters() -> list[str]:
    """The letters that stand for bytes, in the order of the vocabulary: printable ones for themselves, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def clean_as(tokenizer: Any, how: str, source: str) -> None:
    """Let a tokenizer clean texts as open_clip does before it: ``lower``, ``canonicalize`` or ``whitespace``.

    Raises:
        InputError: another way of cleaning, or a tokenizer without a fast backend.
    """
    from tokenizers import Regex, normalizers

    if how == "whitespace":
        return
    steps: list[Any] = [normalizers.Lowercase()]
    if how == "canonicalize":
        marks = "".join(f"\\{mark}" for mark in string.punctuation if mark != "_")
        steps = [
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(f"[{marks}]"), ""),
            *steps,
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    elif how != "lower":
        raise InputError(
            f"{source}: text_cfg.tokenizer_kwargs.clean is {how!r}; supported: lower, canonicalize, whitespace."
        )
    backend = _backend(tokenizer, source)
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])


def strip_separator(tokenizer: Any, source: str) -> None:
    """Let texts end with token 0 in place of BERT's separator, as open_clip's CLIPA does (``strip_sep_token``)."""
    from tokenizers.processors import TemplateProcessing

    backend = _backend(tokenizer, source)
    start, pad = tokenizer.cls_token, tokenizer.convert_ids_to_tokens(0)
    backend.post_processor = TemplateProcessing(
        single=f"{start} $A {pad}", special_tokens=[(start, tokenizer.cls_token_id), (pad, 0)]
    )


def _backend(tokenizer: Any, source: str) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{source}: the tokenizer is {type(tokenizer).__name__}, which has no tokenizer.json; save it with one."
        )
    return backend
