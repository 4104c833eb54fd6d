"""`RobustCLIP`: a prompted CLIP in one self-contained folder, at home on the Hugging Face hub."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from PIL import Image
from torch import Tensor, nn

from apd.data.decode import copied, decode_given
from apd.errors import InputError, nearest
from apd.models import load_clip
from apd.models.calibration import probabilities
from apd.models.checkpoint import read_json
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import Prompts, PromptSpec
from apd.util.files import user_path
from apd.util.hub import hub_or_cache, means_hub
from apd.util.json_shape import NUMBER, TEXT, TRUTH, Each, check_shape
from apd.util.tensors import read_tensors
from apd.util.text import one_line, short

CONFIG = "config.json"
PROMPTS = "prompts.safetensors"
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Options of `RobustCLIP.from_pretrained`."""
TAGS = ("clip", "prompt-tuning", "adversarial-robustness")
_SHAPE = {
    "clip": TEXT,
    "prompts": (None, {}),
    "class_names": Each(TEXT),
    "templates": Each(TEXT),
    "temperature?": NUMBER,
    "open_vocabulary": TRUTH,
}


class RobustCLIP(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="apd",
    pipeline_tag="zero-shot-image-classification",
    tags=list(TAGS),
):
    """A classifier from pixels (B,3,S,S) in [0,1] to logits (B,C), loaded from an export.

    Args:
        folder: what ``apd export --to huggingface`` wrote.

    Example:
        >>> from apd.export import RobustCLIP
        >>> model = RobustCLIP.from_pretrained("photos")  # doctest: +SKIP
        >>> model.classify([Image.open("cat.jpg")])  # doctest: +SKIP
        >>> model.push_to_hub("me/photos")  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        file = folder / CONFIG
        record = read_json(file, str(folder)).get("apd") if file.is_file() else None
        if not isinstance(record, dict):
            raise InputError(
                f"{str(folder)!r} is not an export of this package; apd export --to huggingface writes one."
            )
        self.folder, self.record = folder, record
        check_shape(record, _SHAPE, folder / CONFIG, "export again")
        encoder = load_clip(_inside(folder, record["clip"]))
        prompts = None
        if record["prompts"] is not None:
            tensors, _ = read_tensors(folder / PROMPTS, "export again")
            spec = PromptSpec.recorded(record["prompts"], str(folder / CONFIG))
            prompts = Prompts.from_tensors(spec, encoder.info, tensors).requires_grad_(False)
        self.classifier = PromptedCLIP(encoder, prompts, record["class_names"], record["templates"]).eval()

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the logits stand for, in order."""
        return self.classifier.class_names

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B,C) of pixels (B,3,S,S) in [0,1]; the normalisation happens inside."""
        logits: Tensor = self.classifier(pixels)
        return logits

    @torch.no_grad()
    def classify(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """Return the probability of each class, calibrated as the run's, the most probable first, for images of any size.

        Raises:
            InputError: other than PIL images in a list, or one that cannot be read.
        """
        if not isinstance(images, list | tuple) or not all(isinstance(image, Image.Image) for image in images):
            raise InputError("classify takes a list of PIL images, such as [Image.open('cat.jpg')].")
        if not images:
            return []
        how = self.classifier.encoder.info.preprocessing
        names, locks = [f"images[{index}]" for index in range(len(images))], defaultdict[int, Lock](Lock)
        pixels = decode_given(names, [partial(copied, image, locks[id(image)]) for image in images], how)
        logits = self(pixels.float().to(self.classifier.encoder.device) / 255)
        odds = probabilities(logits / self.record.get("temperature", 1.0), None)
        named = [dict(zip(self.class_names, row, strict=True)) for row in odds.tolist()]
        return [dict(sorted(row.items(), key=lambda entry: -entry[1])) for row in named]

    def with_classes(self, class_names: Sequence[str]) -> PromptedCLIP:
        """Return a classifier for other class names.

        Raises:
            InputError: an export without an open vocabulary.
        """
        if not self.record["open_vocabulary"]:
            raise InputError(
                f"{str(self.folder)!r} was exported for its own classes only; export again with --open-vocabulary."
            )
        return self.classifier.with_classes(class_names)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Copy the export to another folder; ``options`` are those of `PyTorchModelHubMixin.save_pretrained`.

        Raises:
            InputError: its own folder, which would be damaged, one that holds another model, a file.
        """
        save_directory = user_path(save_directory)
        if save_directory.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{str(save_directory)!r} is in the folder of this export itself; choose another one.")
        there = save_directory / CONFIG
        if save_directory.is_file() or (there.is_file() and there.read_bytes() != (self.folder / CONFIG).read_bytes()):
            what = (
                "is a file"
                if save_directory.is_file()
                else "holds another model, whose files would be mixed with these"
            )
            raise InputError(f"{str(save_directory)!r} {what}; choose another folder.")
        saved: str | None = super().save_pretrained(save_directory, **options)
        return saved

    def _save_pretrained(self, save_directory: Path) -> None:
        """Copy the files: nothing in them has been changed."""
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load an export from a folder, or from the hub.

        Args:
            pretrained_model_name_or_path: the folder, or a hub id (owner/name), which is never asked for a path at which there
                is nothing.
            options: the hub's, such as ``revision``, ``token``, ``cache_dir``, ``force_download`` and ``local_files_only``.

        Raises:
            InputError: no folder, not an export, or a hub id that is neither reached nor in the cache.
        """
        unknown = sorted(options.keys() - _OF_THE_HUB)
        if unknown:
            raise InputError(
                f"from_pretrained has no option {unknown[0]!r}. {nearest(unknown[0], _OF_THE_HUB)} A device is chosen by "
                ".to(device) on the result."
            )
        given = pretrained_model_name_or_path
        name, revision = str(user_path(given) if str(given).startswith("~") else given), options.get("revision")
        if Path(name).is_dir():
            return cls(Path(name))
        if isinstance(pretrained_model_name_or_path, Path) or not means_hub(name, revision):
            raise InputError(
                f"No export {name!r}: there is no such folder{'' if name.count('/') == 1 else ', and a hub id is owner/name'}. "
                "apd export RUN --to huggingface --output FOLDER writes one."
            )
        try:
            with nullcontext() if options.get("local_files_only") else hub_or_cache(name):
                return super().from_pretrained(name, **options)
        except OSError as error:
            raise InputError(
                f"No export {name!r}: there is no such folder, and the hub has none or is not reached ({one_line(error, 200)}). "
                "Check the name and the network; offline, it must be in the hub's cache."
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        """Load from a folder, or from the hub."""
        found = {name: options[name] for name in _OF_THE_HUB if name in options}
        return cls(Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id, **found)))


def _inside(folder: Path, place: str) -> Path:
    """A folder of the export itself.

    Raises:
        InputError: a path that leads out of it.
    """
    found = (folder / place).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise InputError(f"{folder / CONFIG} names the CLIP {short(place)}, which is not in this folder; export again.")
    return folder / place
