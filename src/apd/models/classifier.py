"""`PromptedCLIP`: from pixels in [0,1] to logits over named classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.errors import InputError
from apd.models.encoder import DualEncoder
from apd.models.fast.kernels import without_autocast
from apd.models.mixture import Mixture
from apd.models.parts import at_once, in_parts
from apd.models.prompts import Prompts
from apd.models.shown import ShownInShort
from apd.models.templates import DEFAULT_TEMPLATES
from apd.util.listed import listed
from apd.util.text import first_of, short

_BEYOND = 0.5
"""How far pixels may be outside of [0,1]: more than any attack or rounding leaves them, less than normalised ones are."""
COINCIDE = 1e-4
"""Class features coincide if their cosine is nearer to 1 than this."""
_PAIRS = 2**20
"""Pairs of class features that are compared at once, about: 8 MB each time they are written down."""


def _full(features: Tensor) -> Tensor:
    """Half precision raised to float32: from the features on, nothing is computed in half precision."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


@dataclass(frozen=True)
class BoundCLIP:
    """A classifier whose class features and visual tokens are computed: what an attack and a training step work on.

    Args:
        encoder: the frozen CLIP.
        classes: class features (C, D) of unit length; of a mixture those that stand for it.
        visual: visual tokens, (n, width) per block.
        frame: pixels (3, S, S) added to each image before the encoder normalises it; the sum is not clipped.
        mixture: several sets of class features, weighted image by image; None for ``classes`` alone.
    """

    encoder: DualEncoder
    classes: Tensor
    visual: tuple[Tensor, ...]
    frame: Tensor | None = None
    mixture: Mixture | None = None

    def embed(self, x: Tensor) -> Tensor:
        """Image features (B, D) as the encoder gives them, not of unit length, of images (B,3,S,S) in [0,1]."""
        x = self._framed(x)
        if at_once(x):  # a frame less on the stack of every attack
            return _full(self.encoder.encode_image(x, self.visual))
        return _full(in_parts(self.encoder.encode_image, x, self.visual, (0,)))

    def _framed(self, x: Tensor) -> Tensor:
        if self.frame is None:
            return x
        self.encoder.check_pixels(x)  # before the sum, which would broadcast
        return x + self.frame

    def embed_by_block(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `embed`, and the states (depth, B, width) of the class token after each block."""
        encode = self.encoder.encode_image_by_block
        features, states = in_parts(encode, self._framed(x), self.visual, (0, 1))
        return _full(features), _full(states)

    def features(self, x: Tensor) -> Tensor:
        """Image features (B, D) of unit length, of images (B,3,S,S) in [0,1]."""
        return F.normalize(self.embed(x), dim=-1)

    def logits_from_features(self, features: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D) of unit length."""
        info = self.encoder.info
        # In bfloat16 a cosine has 8 bits: at a logit scale of 100 the logits would be off by 0.4.
        with without_autocast(features.device.type):
            if self.mixture is not None:
                return info.logit_scale * self.mixture.cosines(_full(features)) + info.logit_bias
            return info.logit_scale * _full(features) @ _full(self.classes).T + info.logit_bias

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images (B,3,S,S) in [0,1]."""
        return self.logits_from_features(F.normalize(self.embed(x), dim=-1))

    def detach(self) -> BoundCLIP:
        """Cut the values from the prompts' graph."""
        frame = None if self.frame is None else self.frame.detach()
        mixture = None if self.mixture is None else self.mixture.detach()
        return BoundCLIP(self.encoder, self.classes.detach(), tuple(t.detach() for t in self.visual), frame, mixture)


class FrozenClassifier(nn.Module):
    """A plain module from pixels to logits with everything but the pixels fixed: for attacks, from here or from outside."""

    def __init__(self, bound: BoundCLIP) -> None:
        super().__init__()
        self.bound = bound.detach()
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move what it is made of, as ``to`` asks for: its encoder is shared with others, and not one of its modules."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        bound = self.bound
        bound.encoder._apply(fn)  # type: ignore[no-untyped-call]
        frame = None if bound.frame is None else fn(bound.frame)
        mixture = None if bound.mixture is None else Mixture(fn(bound.mixture.sets), fn(bound.mixture.gate))
        self.bound = BoundCLIP(bound.encoder, fn(bound.classes), tuple(map(fn, bound.visual)), frame, mixture)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images (B,3,S,S) in [0,1]."""
        return self.bound.logits_from_features(F.normalize(self.bound.embed(x), dim=-1))


class PromptedCLIP(ShownInShort):
    """A CLIP classifier with or without learned prompts.

    Takes encoder-sized images in [0,1] and normalises inside, so that any attack library can be pointed at it. Class
    features are computed once as long as the prompts are fixed. Change these under ``torch.no_grad()``: torch does not tell of
    a change through ``.data``.

    Args:
        encoder: the frozen CLIP.
        prompts: learned prompts; None for the hand-written templates alone.
        class_names: what the logits stand for, in order.
        templates: sentences with ``{}`` for the class name. Without text tokens the class feature is the mean over all of
            them; with text tokens the first one's tail (after ``{}``) ends the prompt.

    Raises:
        InputError: fewer than two classes, a class twice, a template without ``{}``, a name longer than the context,
            class-specific prompts of another number of classes.

    Example:
        >>> import apd, torch
        >>> clip = apd.load_clip("glyphs")
        >>> model = apd.PromptedCLIP(clip, None, ["one", "two"], ["a photo of the digit {}."])
        >>> model(torch.rand(3, 3, 32, 32)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        encoder: DualEncoder,
        prompts: Prompts | None,
        class_names: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> None:
        super().__init__()
        self.encoder, self.prompts = encoder, prompts
        self.class_names, self.templates = listed(class_names, "class_names"), listed(templates, "templates")
        _check_names(self.class_names, self.templates)
        if prompts is not None and prompts.n_classes not in (None, len(self.class_names)):
            raise InputError(f"The prompts are specific to {prompts.n_classes} classes, got {len(self.class_names)}.")
        n_tokens = prompts.spec.text_tokens if prompts is not None else 0
        # On the CPU: the encoder reads lengths off them, which would make it wait for another device.
        self._ids = [encoder.trim(encoder.prompt_ids(texts, n_tokens)).cpu() for texts in self._texts(n_tokens)]
        self._fixed: tuple[tuple[object, ...], BoundCLIP] | None = None
        self._written: tuple[tuple[object, ...], Tensor] | None = None

    def shown(self) -> dict[str, str]:
        """Return which CLIP model tells which classes apart, by which prompts."""
        learned = "hand-written templates" if self.prompts is None else str(self.prompts.spec)
        return {
            "CLIP model": self.encoder.info.source,
            "prompts": learned,
            "templates": first_of(self.templates, "templates"),
            "classes": first_of(self.class_names, "classes"),
        }

    def _texts(self, n_tokens: int) -> list[list[str]]:
        if n_tokens:
            head, tail = self.around_name()
            return [[f"{head}{name}{tail}" for name in self.class_names]]
        return [[template.replace("{}", name) for name in self.class_names] for template in self.templates]

    def around_name(self) -> tuple[str, str]:
        """Return the words before and after a class name in a text with prompt tokens, which replace the template's head."""
        between = self.prompts.spec.between.strip() if self.prompts is not None else ""
        return f"{between} " if between else "", self.templates[0].split("{}", 1)[1]

    def class_features(self) -> Tensor:
        """Class features (C, D) of unit length, with gradients to the prompts; without text tokens computed once.

        Those of a mixture are the mean over its sets.
        """
        mixture = self._mixture()
        if mixture is not None:
            return mixture.mean()
        tokens = self.prompts.text() if self.prompts is not None else []
        traced = torch.compiler.is_exporting()  # nothing is kept then: it would hold no numbers
        if tokens or traced or any(p.requires_grad for p in self.encoder.parameters()):
            return self._class_features(tokens)
        state = self._state()
        if self._written is None or self._written[0] != state:
            with _to_be_kept(self.encoder.device.type):
                self._written = (state, self._class_features([]))
        return self._written[1]

    def _state(self) -> tuple[object, ...]:
        """Where the encoder is, in which precision, and how often its weights were changed: class features depend on it."""
        parameters = [*self.encoder.parameters()]
        return (self.encoder.device, *{p.dtype: None for p in parameters}, sum(map(_version, parameters)))

    def _mixture(self) -> Mixture | None:
        """Return the class features of every expert, with gradients; None without several experts."""
        prompts = self.prompts
        if prompts is None or prompts.spec.experts == 1:
            return None
        experts = zip(*prompts.text(), strict=True)
        return Mixture(torch.stack([self._class_features(list(tokens)) for tokens in experts]), prompts.gate)

    def _class_features(self, tokens: list[Tensor]) -> Tensor:
        features = [F.normalize(_full(self.encoder.encode_text(ids, tokens)), dim=-1) for ids in self._ids]
        return features[0] if len(features) == 1 else F.normalize(torch.stack(features).mean(dim=0), dim=-1)

    def bind(self) -> BoundCLIP:
        """Compute class features and tokens, once for all that follows."""
        if self.prompts is None:
            return BoundCLIP(self.encoder, self.class_features(), ())
        mixture = self._mixture()
        classes = self.class_features() if mixture is None else mixture.mean()
        return BoundCLIP(self.encoder, classes, tuple(self.prompts.visual()), self.prompts.frame(), mixture)

    def bind_detached(self) -> BoundCLIP:
        """Compute class features and tokens without a graph, for a classifier that does not change.

        Not in half precision, whatever autocast says around it: they are the same whenever they are computed.
        """
        with _to_be_kept(self.encoder.device.type):
            return self.bind().detach()

    def frozen(self) -> FrozenClassifier:
        """This classifier as a plain module from pixels to logits: class features fixed, gradients to pixels only."""
        return FrozenClassifier(self.bind_detached())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images (B,3,S,S) in [0,1].

        Raises:
            InputError: not a tensor, wrong shape, integer pixels, or a range far from [0,1]; on other devices than the CPU the
                range is looked at only when class features are computed, because a look waits for the device.
        """
        if torch.compiler.is_exporting():
            return self.bind_detached().logits(x)
        self.encoder.check_pixels(x)
        if x.device.type == "cpu":
            _check_range(x)
        parameters = list(self.prompts.parameters()) if self.prompts is not None else []
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return self.bind().logits(x)
        state = (*self._state(), self.prompts, *((p.data_ptr(), _version(p)) for p in parameters))
        if self._fixed is None or self._fixed[0] != state:
            _check_range(x)
            self._fixed = (state, self.bind_detached())
        return self._fixed[1].logits(x)

    def zero_shot(self) -> PromptedCLIP:
        """Return the classifier without prompts: the hand-written templates alone."""
        return PromptedCLIP(self.encoder, None, self.class_names, self.templates)

    def with_classes(self, class_names: Sequence[str], templates: Sequence[str] | None = None) -> PromptedCLIP:
        """Use the prompts for other class names, without retraining.

        Of class-specific prompts, a class that this classifier has no context for gets the mean of all contexts; so take the
        classifier that was trained, and not one that serves other classes already.
        """
        prompts = self.prompts
        class_names = listed(class_names, "class_names")
        if prompts is not None and prompts.n_classes and class_names != self.class_names:
            places = {name: place for place, name in enumerate(self.class_names)}
            prompts = prompts.for_classes([places.get(name) for name in class_names])
        return PromptedCLIP(self.encoder, prompts, class_names, templates or self.templates)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; those of inference mode do not know, and cannot be changed outside of it."""
    return 0 if tensor.is_inference() else tensor._version


@contextmanager
def _to_be_kept(device_type: str) -> Iterator[None]:
    """Compute what is kept: without a graph and in full precision, whatever is around it, and fit for a graph later."""
    inference = nullcontext() if torch.compiler.is_exporting() else torch.inference_mode(False)
    with inference, torch.no_grad(), without_autocast(device_type):
        yield


def closest_classes(features: Tensor) -> tuple[float, int, int]:
    """Find the two class features (C, D), of unit length, that are most alike: their cosine and their indices.

    Features of zeros, which nothing tells apart, count as alike.
    """
    features = features.double()
    squares, rows = features.square().sum(dim=1), max(1, _PAIRS // len(features))
    found: list[tuple[Tensor, int]] = []
    for first in range(0, len(features), rows):
        part = slice(first, first + rows)
        similarity = 1 - (squares + squares[part, None]) / 2 + features[part] @ features.T
        similarity.diagonal(first).fill_(-2.0)
        flat = int(similarity.argmax())
        found.append((similarity.flatten()[flat], first * len(features) + flat))
    best = int(torch.stack([cosine for cosine, _ in found]).argmax())  # unlike max(), finds NaN
    cosine, flat = found[best]
    return float(cosine), flat // len(features), flat % len(features)


def check_distinct(classifier: PromptedCLIP) -> None:
    """Refuse a classifier that cannot tell two of its classes apart, whatever the image.

    Raises:
        InputError: two class features (nearly) coincide, as where a tokenizer does not know the words.
    """
    with torch.no_grad():
        cosine, one, other = closest_classes(classifier.class_features().float())
    if not cosine <= 1 - COINCIDE:
        names = classifier.class_names
        raise InputError(
            f"{classifier.encoder.info.source} gives the classes {names[one]!r} and {names[other]!r} the same feature (cosine "
            f"{cosine:.6f}): no image can tell them apart. Check the class names, the templates and the tokenizer's files."
        )


def _check_range(x: Tensor) -> None:
    """Refuse floats that were not divided by 255, or that were normalised already."""
    if x.numel() == 0:
        return
    low, high = (float(value) for value in x.detach().aminmax())
    if low < -_BEYOND or high > 1 + _BEYOND:
        raise InputError(
            f"Images must be in [0,1], got values from {low:.3g} to {high:.3g}: divide pixels of 0 to 255 by 255, and leave "
            "out Normalize, which the classifier does itself. (classifier.frozen() takes any values.)"
        )


def _check_names(class_names: tuple[str, ...], templates: tuple[str, ...]) -> None:
    for what, texts in (("class name", class_names), ("template", templates)):
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"A {what} must be a text, got {short(repr(text))}.")
    if len(class_names) < 2:
        raise InputError(f"A classifier needs at least two classes, got {len(class_names)}: {list(class_names)}.")
    twice = sorted(name for name, count in Counter(class_names).items() if count > 1)
    if twice:
        raise InputError(f"Class name {twice[0]!r} occurs twice; CLIP tells classes apart only by their names.")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"Template {template!r} must have one {{}} for the class name, as in 'a photo of a {{}}.'")
    if not templates:
        raise InputError("At least one template is needed, as in 'a photo of a {}.'")
