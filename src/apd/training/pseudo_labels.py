"""Pseudo-labels: the class that a clean teacher gives to images without a label (UAT, Uesato 2019; RST, Carmon 2019).

Methods whose loss needs a label learn from unlabelled images by these. The teacher is chosen by the rule of
`apd.methods.teachers`, so that all methods are taught by the same one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from apd.methods import Method, Preparation
from apd.methods.base import prompted
from apd.methods.teachers import choose, logits_of, mean_logits, predictions, tune_prompts
from apd.models.prompts import PromptSpec
from apd.training.batches import Images


def pseudo_labels(method: Method, before: Preparation, images: Images) -> Tensor:
    """Return the most probable class (U,) int64 of each unlabelled image.

    Args:
        method: whose CLIP, classes and templates the teacher has.
        before: tunes the teacher, on the labelled images.
        images: the unlabelled ones among them are labelled, not augmented.
    """
    assert images.unlabelled is not None
    frozen = method.labeller()
    if not len(images.train):
        return predictions(frozen.bind_detached().logits, images.unlabelled)
    device = images.unlabelled.labels.device
    tuned = prompted(frozen, PromptSpec(), before.seed + 1).to(device)
    tune_prompts(tuned, before)
    first, second = frozen.bind_detached().logits, tuned.bind_detached().logits
    shares, _ = choose([logits_of(first, images.val), logits_of(second, images.val)], images.val.labels)
    by = torch.tensor(shares, device=device)
    return predictions(lambda x: mean_logits([first(x), second(x)], by), images.unlabelled)


def judged_by_teacher(method: Method, images: Images) -> Images:
    """Return the images with the frozen teacher's most probable classes as labels of those for validation."""
    known = logits_of(method.labeller().bind_detached().logits, images.val)
    return replace(images, val=replace(images.val, labels=known.argmax(dim=-1)))
