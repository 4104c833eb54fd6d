"""The learned prompts: what they look like (`PromptSpec`), and the tensors themselves (`Prompts`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from apd.errors import InputError
from apd.models.encoder import DualEncoder, EncoderInfo
from apd.models.shown import ShownInShort
from apd.util.pydantic_errors import complaint
from apd.util.section import GrowingSection
from apd.util.text import short

Depth = Annotated[int, Field(ge=1)] | Literal["all"]
Coupling = Literal["none", "text-to-vision", "vision-to-text"]


class PromptSpec(GrowingSection):
    """How many prompt tokens, how deep, in which branch, coupled how, from which words; and a frame of pixels."""

    unrecorded: ClassVar[dict[str, Any]] = {"between": "", "experts": 1}

    text_tokens: int = Field(
        4, ge=0, description="text tokens; they replace the first rows after the start token; 0: none"
    )
    text_depth: Depth = Field("all", description="how many text blocks get tokens of their own (1: only the embedding)")
    visual_tokens: int = Field(16, ge=0, description="visual tokens, appended after the patches; 0: none")
    visual_depth: Depth = Field("all", description="how many image blocks get tokens of their own")
    coupling: Coupling = Field(
        "none", description="learn one branch's tokens and map them linearly to the other (MaPLe)"
    )
    words: str | None = Field(
        None, description="words to start from, filling the leading text tokens; null: the template's"
    )
    deep_words: bool = Field(
        True, description="start deeper text tokens from the words' own hidden states, not from noise"
    )
    std: float = Field(0.02, gt=0, description="standard deviation of the tokens that start at random")
    class_specific: bool | None = Field(
        None,
        description="a text context of its own for each class; classes that were not trained get the mean of all; null: decided "
        "when training starts (apd, advvlp, trades and pmg: true where most classes have 16 labelled images and all are "
        "trained, else false)",
    )
    frame: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="width, as a share of the image's side, of learned pixels added to its border; 0: none",
    )
    between: str = Field(
        "", description="words between the text tokens and the class name, which stay as they are (MaPLe, FAP)"
    )

    experts: int = Field(
        1, ge=1, description="sets of text tokens, weighted for each image by a gate that is learned too; 1: no mixture"
    )

    @classmethod
    def recorded(cls, record: Any, place: str) -> PromptSpec:
        """Read what a file has recorded.

        Raises:
            InputError: no such specification; ``place`` says where it stands.
        """
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            problem = complaint(error.errors()[0])
            raise InputError(f"{place} records invalid prompts ({problem}); restore it.") from error

    @model_validator(mode="after")
    def _need_text_tokens(self) -> PromptSpec:
        if self.class_specific and (not self.text_tokens or self.coupling != "none"):
            raise ValueError(
                "prompts.class_specific needs text tokens of their own: text_tokens above 0, coupling none; or set it to false"
            )
        if self.experts > 1 and (not self.text_tokens or self.coupling != "none"):
            raise ValueError(
                f"prompts.experts={self.experts} needs text tokens of their own: text_tokens above 0, coupling none"
            )
        return self

    def __str__(self) -> str:
        """What is learned, in words.

        >>> str(PromptSpec(text_tokens=2, text_depth=1, visual_tokens=0))
        '2 text tokens at depth 1'
        """
        text = "class-specific text" if self.class_specific else "text"
        sets = f"{self.experts} sets, weighted by the image, of " if self.experts > 1 else ""
        branches = [
            (sets, self.text_tokens, text, self.text_depth, "vision-to-text", "visual"),
            ("", self.visual_tokens, "visual", self.visual_depth, "text-to-vision", "text"),
        ]
        parts = [
            f"{sets}{n} {name} tokens at depth {depth}"
            + (f", mapped from the {other} ones" if self.coupling == led else "")
            for sets, n, name, depth, led, other in branches
            if n
        ]
        parts += ["a frame of pixels"] if self.frame else []
        return "; ".join(parts) or "nothing"

    def frame_width(self, info: EncoderInfo) -> int:
        """Width of the frame in pixels, 0 for none."""
        return max(1, round(self.frame * info.image_size)) if self.frame else 0

    def fitting(self, info: EncoderInfo) -> PromptSpec:
        """Return these prompts no deeper than the towers of this encoder, and without tokens in a branch that takes none."""
        fitted: dict[str, Any] = {}
        for branch, blocks in (("text", info.text_depth), ("visual", info.visual_depth)):
            depth = getattr(self, f"{branch}_depth")
            if not blocks:
                fitted |= {f"{branch}_tokens": 0, "coupling": "none"}
                fitted |= {"experts": 1, "class_specific": False} if branch == "text" else {}
            elif depth != "all" and depth > blocks:
                fitted[f"{branch}_depth"] = blocks
        return self.model_copy(update=fitted)

    def depths(self, info: EncoderInfo) -> tuple[int, int]:
        """Text and visual depth for this encoder, 0 where a branch has no tokens.

        Raises:
            InputError: deeper than the tower, a branch that takes no tokens, or a coupling that cannot be.
        """
        wanted = (("text", self.text_tokens, self.text_depth), ("visual", self.visual_tokens, self.visual_depth))
        depths = []
        for branch, n, depth in wanted:
            blocks = info.text_depth if branch == "text" else info.visual_depth
            if n and not blocks:
                raise InputError(
                    f"{info.source} takes no {branch} tokens (its {branch} tower has no token blocks); "
                    f"set prompts.{branch}_tokens=0."
                )
            if n and depth != "all" and depth > blocks:
                raise InputError(
                    f"prompts.{branch}_depth is {depth}, but the {branch} tower of {info.source} has {blocks} blocks; "
                    f"use {blocks} or all."
                )
            depths.append(0 if not n else blocks if depth == "all" else int(depth))
        if self.coupling != "none" and self.text_tokens != self.visual_tokens:
            raise InputError(
                f"prompts.coupling={self.coupling} needs as many text as visual tokens, "
                f"got {self.text_tokens} and {self.visual_tokens}."
            )
        return depths[0], depths[1]


class Prompts(ShownInShort):
    """The only trainable and the only saved module: text and visual tokens, block by block, and a frame of pixels.

    Uncoupled, both branches are parameters of shape (n, width) per block. Coupled (MaPLe, Khattak 2023), the leading branch
    holds the parameters and one linear map per block makes the other branch's tokens; blocks that the leading branch does not
    have are parameters of the led branch. Class-specific text tokens (CoOp, Zhou 2022) are (C, n, width) per block.

    The frame is the ``padding`` prompt of Bahng 2022 and Mao 2023, here in units of [0,1] pixels: four strips that are added
    to the image's border. It starts at 0, which leaves the image unchanged.

    With several experts, text tokens have them as a first dimension, and a gate (K, embed_dim) weights them (`Mixture`).

    Args:
        spec: what they look like.
        info: the encoder's `EncoderInfo`.
        seed: decides the random start.
        n_classes: how many classes class-specific tokens are for.

    Raises:
        InputError: what the encoder cannot take, or class-specific tokens without a number of classes.
    """

    def __init__(self, spec: PromptSpec, info: EncoderInfo, seed: int = 0, n_classes: int | None = None) -> None:
        super().__init__()
        self.spec, self.info = spec, info
        text_depth, visual_depth = spec.depths(info)
        generator = torch.Generator().manual_seed(seed)
        if spec.class_specific and not n_classes:
            raise InputError("prompts.class_specific needs the number of classes; give Prompts n_classes.")
        self.n_classes = n_classes if spec.class_specific else None

        def tokens(shape: tuple[int, ...], depth: int) -> nn.ParameterList:
            return nn.ParameterList(
                nn.Parameter(torch.randn(shape, generator=generator) * spec.std) for _ in range(depth)
            )

        shared = 0 if spec.coupling == "none" else min(text_depth, visual_depth)
        text_led = shared if spec.coupling == "vision-to-text" else 0
        visual_led = shared if spec.coupling == "text-to-vision" else 0
        kinds = (*((spec.experts,) if spec.experts > 1 else ()), *((self.n_classes,) if self.n_classes else ()))
        self.text_tokens = tokens((*kinds, spec.text_tokens, info.text_width), text_depth - text_led)
        self.visual_tokens = tokens((spec.visual_tokens, info.visual_width), visual_depth - visual_led)
        if spec.experts > 1:
            self.gate = nn.Parameter(torch.zeros(spec.experts, info.embed_dim))
        to_visual = spec.coupling == "text-to-vision"
        source, target = (info.text_width, info.visual_width) if to_visual else (info.visual_width, info.text_width)
        self.maps = nn.ModuleList(_linear(source, target, generator) for _ in range(shared))
        width, side = spec.frame_width(info), info.image_size
        if width:
            shapes = [(width, side)] * 2 + [(side - 2 * width, width)] * 2
            self.strips = nn.ParameterList(nn.Parameter(torch.zeros(3, *shape)) for shape in shapes)

    def shown(self) -> dict[str, str]:
        """Return what is learned, and how many numbers that are."""
        return {"learned": str(self.spec), "numbers": f"{sum(p.numel() for p in self.parameters()):,}"}

    @classmethod
    def initial(
        cls,
        spec: PromptSpec,
        encoder: DualEncoder,
        words: str = "a photo of a",
        seed: int = 0,
        n_classes: int | None = None,
    ) -> Prompts:
        """Make prompts whose first text tokens are words, and all others random; experts after the first add noise to the words.

        Args:
            spec: what they look like; ``spec.words`` wins over ``words``.
            encoder: whose text tower knows the words.
            words: usually the head of the data set's template.
            seed: of what starts at random.
            n_classes: how many classes class-specific tokens are for.

        Example:
            >>> import apd
            >>> from apd.models.prompts import Prompts, PromptSpec
            >>> prompts = Prompts.initial(PromptSpec(text_tokens=2, visual_tokens=3), apd.load_clip("glyphs"))
            >>> prompts.text()[0].shape[0], prompts.visual()[0].shape[0]
            (2, 3)
        """
        prompts = cls(spec, encoder.info, seed, n_classes).to(encoder.device)
        text = spec.words if spec.words is not None else words
        if text.strip() and spec.text_tokens:
            states = encoder.word_states(text.strip(), spec.text_tokens)
            # Blocks whose text tokens are mapped from visual ones come first.
            led = len(prompts.maps) if spec.coupling == "vision-to-text" else 0
            states = (states if spec.deep_words else states[:1])[led:]
            if spec.words and not (states and len(prompts.text_tokens)):
                mapped = "the tokens that would start from them are mapped from visual ones"
                why = mapped if led else f"{encoder.info.source} has no states of words"
                raise InputError(f"prompts.words={short(spec.words)} has no effect: {why}; leave it out.")
            with torch.no_grad():
                for tokens, state in zip(prompts.text_tokens, states, strict=False):
                    rows = tokens[..., : len(state), :]
                    if spec.experts > 1:  # alike, they would stay alike
                        rows[1:] += state
                        rows = rows[0]
                    rows[...] = state
        return prompts

    @classmethod
    def from_tensors(cls, spec: PromptSpec, info: EncoderInfo, tensors: dict[str, Tensor]) -> Prompts:
        """Prompts from saved tensors (those of `state_dict`).

        Raises:
            InputError: where names or shapes are not those of ``spec`` on this encoder.
        """
        first = tensors.get("text_tokens.0")
        # Before room is made for them: a file may speak of any number of tokens.
        held = max((tensor.numel() for tensor in tensors.values()), default=0)
        asked = max(spec.text_tokens * spec.experts, spec.visual_tokens)
        contexts = None if first is None or first.dim() < 3 else first.shape[-3]
        if asked > held or (spec.class_specific and not contexts):
            raise InputError(f"The saved prompts do not fit {info.source}: {asked} tokens are recorded, but not saved.")
        prompts = cls(spec, info, n_classes=contexts if spec.class_specific else None)
        wanted = {name: tuple(t.shape) for name, t in prompts.state_dict().items()}
        got = {name: tuple(t.shape) for name, t in tensors.items()}
        if wanted != got:
            odd = sorted(set(wanted.items()) ^ set(got.items()))[0]
            raise InputError(f"The saved prompts do not fit {info.source}: {odd[0]} {odd[1]} is on one side only.")
        try:
            prompts.load_state_dict(tensors)
        except RuntimeError as error:  # numbers of a type that torch does not turn into these
            kinds = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
            raise InputError(f"The saved prompts are of a type that is not read ({kinds}).") from error
        return prompts

    def for_classes(self, learned: Sequence[int | None]) -> Prompts:
        """Return class-specific prompts for other classes, copied: a class that was learned keeps its context.

        Any other gets the mean of all contexts (this project's choice): what they have in common, as prompts that all
        classes share would.

        Args:
            learned: for each class its place among those that were learned, or None.
        """
        if self.n_classes is None:
            return self
        other = Prompts(self.spec, self.info, n_classes=len(learned)).to(self.text_tokens[0].device)
        tensors = self.state_dict()
        for name in [name for name in tensors if name.startswith("text_tokens.")]:
            contexts = tensors[name].unbind(dim=-3)
            mean = tensors[name].mean(dim=-3)
            tensors[name] = torch.stack([mean if i is None else contexts[i] for i in learned], dim=-3)
        other.load_state_dict(tensors)
        for ours, parameter in zip(other.parameters(), self.parameters(), strict=True):
            ours.requires_grad_(parameter.requires_grad)
        return other

    def text(self) -> list[Tensor]:
        """Text tokens (n, text_width), class-specific ones (C, n, text_width), one tensor per block; of experts (K, …)."""
        return self._lead(self.text_tokens, self.visual_tokens, self.spec.coupling == "vision-to-text")

    def visual(self) -> list[Tensor]:
        """Visual tokens (n, visual_width), one tensor per block."""
        return self._lead(self.visual_tokens, self.text_tokens, self.spec.coupling == "text-to-vision")

    def frame(self) -> Tensor | None:
        """Pixels (3, S, S) to add to images in [0,1], 0 inside the frame; None for no frame."""
        if not self.spec.frame:
            return None
        top, bottom, left, right = self.strips
        inside = top.new_zeros(3, left.shape[1], top.shape[2] - 2 * left.shape[2])
        return torch.cat([top, torch.cat([left, inside, right], dim=2), bottom], dim=1)

    def _lead(self, own: nn.ParameterList, leading: nn.ParameterList, led: bool) -> list[Tensor]:
        mapped = [linear(tokens) for linear, tokens in zip(self.maps, leading, strict=False)] if led else []
        return [*mapped, *own]


def _linear(source: int, target: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(source, target)
    bound = source**-0.5
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
    return linear
