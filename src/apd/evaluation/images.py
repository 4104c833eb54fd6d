"""Adversarial images kept as files, with an index.

::

    FOLDER/ATTACK-HASH/index.json           one entry per attacked image, and what all of them have in common
    FOLDER/ATTACK-HASH/index.csv            the same entries as a table
    FOLDER/ATTACK-HASH/adversarial/ID.png   what the attack made, 16 bits per channel
    FOLDER/ATTACK-HASH/clean/ID.png         the image before the attack, as the model sees it, 16 bits per channel

A level of an 8-bit file is 1/255, as much as a usual eps: rounding to it would add or remove whole steps of the attack. A level
of a 16-bit file is 1/65535, so that the images differ from what the attack found by less than 0.4 % of eps 1/255, and those
of an Linf attack with a whole number of 255ths at the border of the ball not at all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.evaluation.store import Key, digest
from apd.util.files import read_bounded, read_json, sync_folder, write_atomic, writing
from apd.util.json_shape import NUMBER, TEXT, TRUTH, Each, check_shape
from apd.util.png import decode_png16, encode_png16
from apd.util.text import cell, short, to_json

LEVELS = 65535
FORMAT = 1
"""Version of the index."""
_SHAPE = {
    "about": {},
    "images": Each(
        {
            **dict.fromkeys(("id", "file", "clean_file", "label", "predicted_clean", "predicted_adversarial"), TEXT),
            **dict.fromkeys(("attack", "by", "pixels"), TEXT),
            **dict.fromkeys(("eps", "distance", "max_error"), NUMBER),
            "changed": TRUTH,
        }
    ),
}
_LARGEST_IMAGE = 128 * 2**20
"""Bytes of an image's file."""
_ROUNDING = 0.01
"""Levels by which float32 may miss a whole one."""


@dataclass(frozen=True)
class KeptImage:
    """One attacked image.

    Args:
        id: the sample's id.
        file, clean_file: adversarial and clean image, relative to the index.
        label: the right class.
        predicted_clean: the class without an attack.
        predicted_adversarial: the class of the image in ``file``.
        eps: budget in [0,1] pixel units.
        attack: the attack's name.
        by: the part of the attack that made the image.
        distance: how far the two files are apart, in the threat model's norm and [0,1] pixel units.
        max_error: largest difference between ``file`` and what the attack found, in [0,1] pixel units.
        changed: whether that difference has changed the predicted class.
        pixels: fingerprint of the clean image.
    """

    id: str
    file: str
    clean_file: str
    label: str
    predicted_clean: str
    predicted_adversarial: str
    eps: float
    attack: str
    by: str
    distance: float
    max_error: float
    changed: bool
    pixels: str


class ImageFolder:
    """The images of one attack on one model; what is there already stays.

    Args:
        folder: is made when the first images come.
        about: what all images have in common, on which they depend; a folder of something else is refused.
        class_names: in the order of the logits.

    Raises:
        InputError: an index that cannot be read, or one of other images.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], class_names: Sequence[str]) -> None:
        self.folder, self.about, self.class_names = folder, json.loads(json.dumps(dict(about))), tuple(class_names)
        self._kept: dict[Key, KeptImage] = {}
        index = folder / "index.json"
        if index.exists():
            found = read_index(index)
            try:
                self._kept = {self._key(image): image for image in (KeptImage(**row) for row in found["images"])}
                same = found["about"] == self.about
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{index} is damaged ({error}); {_way_out(index)}.") from error
            if not same:
                raise InputError(f"{index} is of other images; remove {folder} to make them again.")

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def add(
        self,
        keys: Sequence[Key],
        clean: Tensor,
        found: Tensor,
        by: Sequence[str],
        threat: ThreatModel,
        predict: Callable[[Tensor], Tensor],
    ) -> None:
        """Write a batch's images, then the index: a kill in between leaves files that the index does not name.

        Args:
            keys: one per sample; all are classified rightly without an attack.
            clean: images (B,3,S,S) in [0,1] before the attack, on the CPU.
            found: those after it, on the CPU.
            by: the part of the attack that made each image.
            threat: the stored images stay inside of it.
            predict: images on the CPU to classes (B,) on the CPU.
        """
        stored, predicted, wanted = storable(found, clean, threat, predict)
        before, _, _ = _rounded(clean, clean, threat)
        errors = (stored - found.double()).abs().flatten(1).amax(dim=1).tolist()
        distances = threat.distance(stored, before).tolist()
        for i, key in enumerate(keys):
            name = f"{_safe(key[0], key[1])}.png"
            for place, image in (("adversarial", stored[i]), ("clean", before[i])):
                write_atomic(self.folder / place / name, encode_png16(_levels(image)), sync_name=False)
            self._kept[key] = KeptImage(
                id=key[0],
                file=f"adversarial/{name}",
                clean_file=f"clean/{name}",
                label=self.class_names[key[2]],
                predicted_clean=self.class_names[key[2]],
                predicted_adversarial=self.class_names[int(predicted[i])],
                eps=threat.eps,
                attack=self.about["attack"],
                by=by[i],
                distance=distances[i],
                max_error=errors[i],
                changed=bool(predicted[i] != wanted[i]),
                pixels=key[1],
            )
        for place in ("adversarial", "clean"):
            with writing(self.folder / place):
                sync_folder(self.folder / place)
        self.write()

    def write(self, complete: bool = False) -> None:
        """Write the index; ``complete`` says that all attacked images of an evaluation are in it."""
        rows = [asdict(image) for image in self._kept.values()]
        index = {
            "format": FORMAT,
            "complete": complete,
            "about": self.about,
            "class_names": self.class_names,
            "bits": 16,
            "max_error": max((row["max_error"] for row in rows), default=0.0),
            "max_distance": max((row["distance"] for row in rows), default=0.0),
            "changed_by_storing": sum(row["changed"] for row in rows),
            "images": rows,
        }
        table = io.StringIO()
        writer = csv.DictWriter(table, list(KeptImage.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
        write_atomic(self.folder / "index.csv", table.getvalue())
        write_atomic(self.folder / "index.json", to_json(index) + "\n")

    def summary(self) -> str:
        """Say what is kept, and how exactly."""
        kept = list(self._kept.values())
        error = max((image.max_error for image in kept), default=0.0)
        changed = sum(image.changed for image in kept)
        note = f"; for {changed} of them it changes the predicted class" if changed else ", which changes no prediction"
        return f"{len(kept)} adversarial images are in {self.folder} (16-bit PNG, largest error {error:.1e}{note})"

    def _key(self, image: KeptImage) -> Key:
        return image.id, image.pixels, self.class_names.index(image.label)


def read_index(file: Path) -> dict[str, Any]:
    """Read the index of a folder of images.

    Raises:
        InputError: a damaged file, or one that names images elsewhere.
    """
    index = read_json(file, _way_out(file))
    check_shape(index, _SHAPE, file, _way_out(file))
    names = (image[key] for image in index["images"] for key in ("file", "clean_file"))
    odd = next((name for name in names if not re.fullmatch(r"(adversarial|clean)/[\w.-]+\.png", name)), None)
    if odd is not None:
        raise InputError(f"{file} names {short(odd)}, which is not an image of this folder; {_way_out(file)}.")
    return dict(index)


def _way_out(index: Path) -> str:
    return f"remove {index.parent} to make the images again"


def folder_of(folder: Path, circumstances: Mapping[str, str]) -> Path:
    """Where the images of an attack under these circumstances go."""
    return folder / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', circumstances['attack'])[:60]}-{digest(circumstances)}"


def read_image(path: str | Path) -> Tensor:
    """A kept image (3,S,S) in [0,1], as the model was given it.

    Raises:
        InputError: no such file, or not one that `ImageFolder` wrote.
    """
    content = read_bounded(Path(path), "evaluate again with --save-images", _LARGEST_IMAGE)
    try:
        pixels = decode_png16(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return torch.from_numpy((pixels.transpose(2, 0, 1) / LEVELS).astype(np.float32))


def storable(
    found: Tensor, clean: Tensor, threat: ThreatModel, predict: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Round images to 16-bit levels, inside the threat model, so that they are still classified as before if possible.

    Of the nearest level, the next one outwards and the next one inwards, each image takes the first that stays inside the
    ball and keeps the predicted class.

    Args:
        found: (B,3,S,S) in [0,1] after the attack, on the CPU.
        clean: before it.
        threat: the attack's, which decides what is inside the ball.
        predict: images on the CPU to classes (B,) on the CPU.

    Returns:
        The rounded images (float64), their classes (B,), and the classes (B,) of ``found``.
    """
    wanted = predict(found)
    nearest, outwards, inwards = _rounded(found, clean, threat)
    stored, predicted = inwards, predict(inwards.float())
    for rounded in (outwards, nearest):
        classes = predict(rounded.float())
        inside = threat.distance(rounded, clean.double()) <= threat.eps * (1 + 1e-6) + 1e-7
        take = inside & (classes == wanted)
        stored = torch.where(take.view(-1, 1, 1, 1), rounded, stored)
        predicted = torch.where(take, classes, predicted)
    return stored, predicted, wanted


def _rounded(found: Tensor, clean: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest levels, those away from the clean image and those towards it, as float64 in [0,1]."""
    value, base = found.double() * LEVELS, clean.double() * LEVELS
    low, high = (value + _ROUNDING).floor(), (value - _ROUNDING).ceil()
    above = value >= base
    outwards, inwards = torch.where(above, high, low), torch.where(above, low, high)
    if threat.norm == "linf":  # no pixel may leave its own interval
        most, least = (base + threat.eps * LEVELS + _ROUNDING).floor(), (base - threat.eps * LEVELS - _ROUNDING).ceil()
        nearest, outwards = (torch.clamp(levels, least, most) for levels in (value.round(), outwards))
    else:
        nearest = value.round()
    return nearest.clamp(0, LEVELS) / LEVELS, outwards.clamp(0, LEVELS) / LEVELS, inwards.clamp(0, LEVELS) / LEVELS


def _levels(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return (image * LEVELS).round().cpu().numpy().astype(np.uint16).transpose(1, 2, 0)


def _safe(id_: str, pixels: str) -> str:
    """A name for the files of a sample, safe on any file system, in HTML and on a terminal, and different for each sample."""
    digest = hashlib.blake2b(f"{id_}\0{pixels}".encode(errors="surrogateescape"), digest_size=6).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"\.\w{1,5}$", "", id_)).strip("-")[-40:]
    return f"{readable}-{digest}" if readable else digest
