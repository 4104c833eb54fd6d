"""A clean teacher of soft labels: zero-shot CLIP, prompts tuned on clean images, a linear probe, or the mean of some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apd.methods.base import Preparation, prompted
from apd.methods.probe import fit_probe, probe_logits
from apd.methods.step import PerObject
from apd.methods.teachers import CHOSEN, PARTS, choose, mean_logits, per_image, tune_prompts
from apd.models.classifier import BoundCLIP, PromptedCLIP
from apd.models.prompts import PromptSpec


class BlendedTeacher(nn.Module):
    """The mean of clean teachers, by equal shares or by those that validation images choose (`apd.methods.teachers`).

    Args:
        kind: which teachers there are, a key of `PARTS`; without ``tuned`` where the encoder takes no prompts.
        clip: zero-shot CLIP, which is ``frozen``; what is fitted is fitted on it.
        spec: prompts to tune, where they are deeper than its towers no deeper.
        seed: decides where the prompts start.
    """

    shares: Tensor
    probe: Tensor

    def __init__(self, kind: str, clip: PromptedCLIP, spec: PromptSpec, seed: int) -> None:
        super().__init__()
        self.clip, self.chosen = clip, kind in CHOSEN
        self.parts, self.tuned = PARTS[kind], None
        if "tuned" in self.parts:
            tuned = prompted(clip, spec.fitting(clip.encoder.info), seed)
            if tuned.prompts is not None and any(True for _ in tuned.prompts.parameters()):
                self.tuned = tuned.requires_grad_(False)
            else:
                self.parts = tuple(part for part in self.parts if part != "tuned")
        self.register_buffer("shares", torch.full((len(self.parts),), 1 / len(self.parts)))
        if "probe" in self.parts:
            self.register_buffer("probe", torch.zeros(clip.encoder.info.embed_dim, len(clip.class_names)))
        self._bound = PerObject[PromptedCLIP, BoundCLIP](PromptedCLIP.bind_detached)

    def fit(self, before: Preparation) -> float | None:
        """Fit what there is to fit on clean labelled images, and choose the shares on validation images.

        Without any label nothing can be fitted or chosen: all of the shares are then zero-shot CLIP's.

        Returns:
            The accuracy on the validation images, in [0,1], of what was chosen; None where nothing was.
        """
        if not len(before.images):
            self.shares.copy_(torch.tensor([float(part == "frozen") for part in self.parts]))
            return None
        if "probe" in self.parts:
            features = per_image(self._bound(self.clip).features, before.images)
            self.probe.copy_(fit_probe(features, before.images.labels, self.probe.shape[1]))
        if self.tuned is not None:
            tune_prompts(self.tuned, before)
        if not self.chosen:
            return None
        known = per_image(lambda x: torch.stack(self._known(x, self.parts), dim=1), before.validation)
        shares, accuracy = choose(known.unbind(dim=1), before.validation.labels)
        self.shares.copy_(torch.tensor(shares))
        return accuracy

    def used(self) -> list[str]:
        """List what has a share."""
        return [part for part, share in zip(self.parts, self.shares.tolist(), strict=True) if share]

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of images (B,3,S,S) in [0,1], without a graph."""
        with torch.no_grad():
            known = self._known(x, self.used())
            return known[0] if len(known) == 1 else mean_logits(known, self.shares[self.shares > 0])

    def _known(self, x: Tensor, parts: Sequence[str]) -> list[Tensor]:
        """Return each teacher's logits (B, C)."""
        frozen = self._bound(self.clip)
        features = frozen.features(x) if any(part != "tuned" for part in parts) else None
        known = []
        for part in parts:
            if features is None or part == "tuned":
                assert self.tuned is not None
                known.append(self._bound(self.tuned).logits(x))
            elif part == "probe":
                known.append(probe_logits(features, self.probe))
            else:
                known.append(frozen.logits_from_features(features))
        return known
