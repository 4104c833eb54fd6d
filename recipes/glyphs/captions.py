"""The glyphs' identities, the captions that are true of a picture, and the tokenizer trained on them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CASELESS = "CKPUVWX"
"""Letters whose two cases are the same drawing once cropped tightly: one identity each."""
UPPERCASE = "ABDEFGHJLMNQRTY"
LOWERCASE = "abdefghijmnqrty"
"""Left out on purpose: O, I, S, Z, l, o, s and z, which cropped tightly are drawn like 0, 1, 5 and 2."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.15, 0.25, 0.9),
    "yellow": (0.95, 0.9, 0.15),
    "purple": (0.6, 0.15, 0.7),
    "orange": (1.0, 0.55, 0.05),
}
COLOUR_NAMES = tuple(COLOURS)

UNSAID = -1
"""Value of an attribute that a caption does not mention."""


@dataclass(frozen=True)
class Glyph:
    """One identity: the character drawn and the nouns that name it."""

    char: str
    names: tuple[str, ...]

    @property
    def is_digit(self) -> bool:
        return self.char.isdigit()


GLYPHS: tuple[Glyph, ...] = (
    *(Glyph(str(value), (name, str(value))) for value, name in enumerate(DIGIT_NAMES)),
    *(Glyph(char, (f"letter {char}", f"letter {char.lower()}")) for char in CASELESS),
    *(Glyph(char, (f"uppercase {char}", f"capital letter {char}")) for char in UPPERCASE),
    *(Glyph(char, (f"lowercase {char}", f"small letter {char}")) for char in LOWERCASE),
)

TEMPLATES = (
    "{}",
    "{}.",
    "{a}",
    "{the}.",
    "a photo of {a}.",
    "a photo of {the}.",
    "a photo of {the}",
    "a picture of {a}.",
    "a picture of {the}.",
    "an image of {a}.",
    "an image of {the}.",
    "a drawing of {a}.",
    "a close-up photo of {the}.",
    "a handwritten {}.",
    "a scan of {a}.",
    "a scanned handwritten {}.",
    "this is {a}.",
    "this is {the}.",
    "a printed {}.",
    "a centered image of {the}.",
)
"""Plain templates: ``{}`` the noun, ``{a}`` with "a"/"an", ``{the}`` as "the digit seven" or "the letter B"."""


def with_article(noun: str) -> str:
    """``noun`` with its indefinite article: "a seven", "an eight", "an uppercase B"."""
    return ("an " if noun.startswith(("eight", "8", "orange", "uppercase")) else "a ") + noun


def pick(count: int, generator: torch.Generator) -> int:
    """A uniform integer in [0, count)."""
    return int(torch.randint(count, (), generator=generator))


def _noun(glyph: Glyph, kind: str, name: str) -> str:
    """The noun behind "the": digits are said as "the digit seven" or "the number seven"."""
    return f"{kind} {name}" if glyph.is_digit else name


def plain_caption(glyph: Glyph, generator: torch.Generator) -> str:
    """A caption that names the glyph and says nothing else, such as "a photo of the digit seven."."""
    name = glyph.names[pick(len(glyph.names), generator)]
    kind = ("digit", "number")[pick(2, generator)]
    template = TEMPLATES[pick(len(TEMPLATES), generator)]
    return template.format(name, a=with_article(name), the=f"the {_noun(glyph, kind, name)}")


def detailed_caption(attributes: torch.Tensor, generator: torch.Generator) -> tuple[str, torch.Tensor]:
    """A caption with some attributes of one picture, and what it says of each.

    ``attributes`` (5,): identity, colour, background, slanted (0/1), blurred (0/1). The second value returned is
    the same row with :data:`UNSAID` wherever the caption is silent. Absence ("not slanted") is never said.
    """
    identity, colour, background, slanted, blurred = (int(value) for value in attributes)
    glyph = GLYPHS[identity]
    said = torch.full((5,), UNSAID)
    said[0] = identity
    name = glyph.names[pick(len(glyph.names), generator)]
    words = [_noun(glyph, "digit", name) if pick(2, generator) else name]
    if pick(4, generator):
        words.insert(0, COLOUR_NAMES[colour])
        said[1] = colour
    for index, (value, word) in enumerate(((slanted, "slanted"), (blurred, "blurry")), start=3):
        if value and pick(2, generator):
            words.insert(0, word)
            said[index] = 1
    text = with_article(" ".join(words))
    if pick(2, generator):
        text += f" on {with_article(COLOUR_NAMES[background])} background"
        said[2] = background
    return (f"a photo of {text}." if pick(2, generator) else text), said


def truth(said: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    """Which captions are true of which pictures: ``said`` (T, 5), ``attributes`` (B, 5) -> bool (B, T)."""
    return ((said[None] == UNSAID) | (said[None] == attributes[:, None])).all(-1)


def corpus(seed: int = 0, draws: int = 400) -> list[str]:
    """Captions to train the tokenizer on: ``draws`` plain and detailed captions of every glyph."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for identity, _ in itertools.product(range(len(GLYPHS)), range(draws)):
        colour, background = (pick(len(COLOURS), generator) for _ in range(2))
        row = torch.tensor([identity, colour, background, 1, 1])
        lines += [plain_caption(GLYPHS[identity], generator), detailed_caption(row, generator)[0]]
    return lines


def train_tokenizer(vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text has tokens); captions stand between a start and an end token; pads are end tokens."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[start, end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        model_max_length=context,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, the latter in the form old and new libraries read."""
    # Calls with padding or truncation leave their settings behind; the file must not depend on them.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "model_max_length": tokenizer.model_max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
