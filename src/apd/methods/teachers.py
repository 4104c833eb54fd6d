"""Which clean teacher serves: zero-shot CLIP, one fitted on the labelled images, or the mean of several.

What is fitted is a linear probe (`apd.methods.probe`), or prompts. The rule: the one whose soft labels have the lowest
cross-entropy on the validation images, which none has seen. Where zero-shot CLIP knows nothing of a domain that is a
fitted one; where a few images teach it less than it knew, the frozen one. Cross-entropy, not accuracy: it judges the soft
labels, which are what is taught, and scatters less on few images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.data.streamed import in_parts
from apd.errors import InputError
from apd.methods.base import MethodSettings, Preparation
from apd.methods.clean import VLP
from apd.models.classifier import PromptedCLIP
from apd.models.shared import shared_classifier, shared_clip
from apd.settings.train import ChosenTeacher

if TYPE_CHECKING:
    from apd.data.dataset import Images

CHOSEN: tuple[ChosenTeacher, ...] = get_args(ChosenTeacher)
"""Teachers that are chosen on validation images."""

PARTS = {
    "auto": ("frozen", "tuned"),
    "mean": ("frozen", "tuned"),
    "probe": ("frozen", "probe"),
    "best": ("frozen", "tuned", "probe"),
}
"""What may have a share in such a teacher's soft labels."""

_BATCH = 256


def other_clip(zero_shot: PromptedCLIP, source: str | None) -> PromptedCLIP:
    """Return the CLIP model that a setting names, with the student's classes and templates; its own for None.

    What names a run folder is the classifier that the run has learned, with its prompts and templates. Whoever starts the
    training has loaded it (`apd.models.shared.share_classifier`).

    Raises:
        InputError: a model that cannot be loaded, or that takes images of another size.
    """
    if source is None:
        return zero_shot
    learned = shared_classifier(source)
    encoder = shared_clip(source, device=zero_shot.encoder.device) if learned is None else learned.encoder
    sizes = encoder.info.image_size, zero_shot.encoder.info.image_size
    if sizes[0] != sizes[1]:
        raise InputError(
            f"Teacher {source} takes {sizes[0]} px, the student {sizes[1]} px; teacher and student must see the same image."
        )
    if learned is not None:
        return learned.with_classes(zero_shot.class_names)
    return PromptedCLIP(encoder, None, zero_shot.class_names, zero_shot.templates)


def tune_prompts(teacher: PromptedCLIP, before: Preparation) -> None:
    """Tune a teacher's prompts on clean labelled images, in place."""
    assert teacher.prompts is not None
    clean = VLP(MethodSettings(prompts=teacher.prompts.spec), teacher.zero_shot())
    assert clean.student.prompts is not None
    clean.student.prompts.load_state_dict(teacher.prompts.state_dict())
    before.tune(clean)
    teacher.prompts.load_state_dict(clean.student.prompts.state_dict())


def mean_logits(known: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Return logits (B, C) whose softmax is the mean, by these shares (T,), of the softmax of T teachers' logits (B, C)."""
    return torch.logsumexp(torch.stack([*known]).log_softmax(dim=-1) + shares.log()[:, None, None], dim=0)


def per_image(function: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """Return what a function of pixels (B,3,S,S), such as logits (B, C), gives for all images, not augmented, part by part."""
    with torch.no_grad():
        return torch.cat([function(images.pixels(index)) for index in in_parts(images, _BATCH)])


def predictions(logits: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """Return the most probable class (N,) int64 of each image.

    Part by part: the logits of all images, which may be many, are never there at once.

    Args:
        logits: images (B,3,S,S) to logits (B, C).
        images: not augmented.
    """
    return per_image(lambda x: logits(x).argmax(dim=-1), images)


def choose(known: Sequence[Tensor], labels: Tensor) -> tuple[tuple[float, ...], float]:
    """Choose one teacher or the mean of several, by the rule at the head of this page.

    Args:
        known: each teacher's logits (N, C) on validation images.
        labels: (N,).

    Returns:
        The teachers' shares in the soft label, and the accuracy of what was chosen on these images, in [0,1].
    """
    found: dict[tuple[float, ...], Tensor] = {}
    for count in range(1, len(known) + 1):
        for those in combinations(range(len(known)), count):
            shares = tuple(1 / count if i in those else 0.0 for i in range(len(known)))
            found[shares] = mean_logits(known, torch.tensor(shares, device=labels.device))
    best = min(found, key=lambda shares: float(F.cross_entropy(found[shares], labels)))
    return best, float((found[best].argmax(dim=-1) == labels).float().mean())
