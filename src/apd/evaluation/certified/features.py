"""Image features under noise, computed once and used for any class names and text prompts (OVC's observation).

Features of noisy images depend on the image tower and the visual prompts only. So one pass over the noise serves every set
of classes, every template and every text prompt that goes with the same visual prompts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apd.errors import InputError
from apd.evaluation.certified.smoothing import Smoothing, Votes, count_votes, noisy
from apd.evaluation.frozen import exact_float32
from apd.models.classifier import PromptedCLIP
from apd.util.device import free_memory
from apd.util.progress import watched
from apd.util.seeds import sample_seeds
from apd.util.tensors import read_tensors, sha256_of_weights, write_tensors

_BYTES = 4


def visual_side(classifier: PromptedCLIP) -> str:
    """Return a fingerprint of what image features depend on: image tower, preprocessing, visual prompts."""
    bound = classifier.bind_detached()
    digest = hashlib.sha256(f"{sha256_of_weights(classifier.encoder)} {classifier.encoder.info.preprocessing}".encode())
    for tensor in (*bound.visual, *(() if bound.frame is None else (bound.frame,))):
        digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class NoisyFeatures:
    """Features of images under noise, for any classes.

    Args:
        features: (N, n0 + n, D) float32 of unit length, on the CPU.
        how: the noise and the numbers of draws.
        visual: what they depend on, see `visual_side`.

    Example:
        >>> import apd, torch
        >>> from apd.evaluation.certified.features import NoisyFeatures
        >>> from apd.evaluation.certified.smoothing import Smoothing
        >>> clip = apd.load_clip("glyphs")
        >>> model = apd.PromptedCLIP(clip, None, ["one", "two"], ["a photo of the digit {}."])
        >>> how = Smoothing(sigma=0.1, n0=8, n=56)
        >>> kept = NoisyFeatures.compute(model, torch.rand(1, 3, 32, 32), ["image"], how)
        >>> [sum(kept.votes(one)[0].counts) for one in (model, model.with_classes(["three", "four", "five"]))]
        [56, 56]
    """

    features: Tensor
    how: Smoothing
    visual: str

    @classmethod
    def compute(
        cls, classifier: PromptedCLIP, images: Tensor, ids: list[str] | tuple[str, ...], how: Smoothing, seed: int = 0
    ) -> NoisyFeatures:
        """Compute the features of ``images`` (N,3,S,S) in [0,1]; ``ids`` and ``seed`` decide the noise.

        Raises:
            InputError: more than fits in memory.
        """
        draws, width = how.n0 + how.n, classifier.encoder.info.embed_dim
        needed, free = _BYTES * len(images) * draws * width, free_memory(torch.device("cpu"))
        if 2 * needed > free:
            raise InputError(
                f"Features of {len(images)} images under {draws} draws of noise take {needed / 1e9:.1f} GB, but only "
                f"{free / 1e9:.1f} GB are free; take fewer images or draws, or certify without keeping features."
            )
        device, found = classifier.encoder.device, []
        seeds = sample_seeds(ids, seed, "noise").tolist()
        with exact_float32(device), torch.no_grad():
            bound = classifier.bind_detached()
            for x, own in watched(zip(images, seeds, strict=True), len(images), "features under noise", "images"):
                parts = [bound.features(part).cpu() for part in noisy(x.to(device), own, how.sigma, draws)]
                found.append(torch.cat(parts))
        return cls(torch.stack(found), how, visual_side(classifier))

    def votes(self, classifier: PromptedCLIP) -> list[Votes]:
        """Let a classifier of any classes vote; no image goes through the model again.

        Raises:
            InputError: a classifier with another image tower or other visual prompts.
        """
        if visual_side(classifier) != self.visual:
            raise InputError(
                "These features under noise are of another image tower or of other visual prompts; compute them anew."
            )
        with exact_float32(classifier.encoder.device), torch.no_grad():
            bound = classifier.bind_detached()
            answers = [
                bound.logits_from_features(one.to(classifier.encoder.device)).argmax(-1).cpu() for one in self.features
            ]
        return [count_votes(one, self.how, len(classifier.class_names)) for one in answers]

    def save(self, file: str | Path) -> None:
        """Write them to a safetensors file."""
        how = self.how
        about = {"sigma": repr(how.sigma), "n0": str(how.n0), "n": str(how.n), "alpha": repr(how.alpha)}
        write_tensors(Path(file), {"features": self.features}, {**about, "visual": self.visual})

    @classmethod
    def load(cls, file: str | Path) -> NoisyFeatures:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or a damaged one.
        """
        tensors, about = read_tensors(Path(file), "compute the features again")
        try:
            how = Smoothing(float(about["sigma"]), int(about["n0"]), int(about["n"]), float(about["alpha"]))
            features, visual = tensors["features"], about["visual"]
        except (KeyError, ValueError) as error:
            raise InputError(f"{file} does not hold features under noise ({error}); compute them again.") from error
        if features.dim() != 3 or features.shape[1] != how.n0 + how.n:
            raise InputError(f"{file} does not hold {how.n0 + how.n} draws per image; compute the features again.")
        return cls(features, how, visual)
