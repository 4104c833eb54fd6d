"""The standard data sets of prompt learning: where each lies, how it is laid out, what its classes are called.

Folders, split files and templates are those of CoOp (arXiv 2109.01134: its DATASETS.md and CUSTOM_TEMPLATES), so that
the one folder in which its users keep all data sets serves here as it is. CIFAR and Tiny-ImageNet are not in CoOp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Layout = Literal["split file", "class folders", "aircraft", "imagenet", "imagenet test", "imagenet v2", "tiny-imagenet"]

_PHOTO = "a photo of a {}."
# CLIP's names, which CoOp's classnames.txt copies, call two pairs of classes alike (openai/CLIP issues 235 and 465):
# the text alone could never tell them apart. These are WordNet's own names of one of each pair.
_SYNSETS = {"n04355933": "sunglass", "n04008634": "projectile"}


@dataclass(frozen=True)
class Standard:
    """One data set.

    Args:
        title: as papers write it.
        folder: its folder below the root of all data sets.
        classes: number of classes; loading refuses another number.
        layout: which reader takes it.
        holds: what must be in its folder.
        images: the folder of the images, below its own.
        listing: the split file, or the file of class names; empty where folders tell the names.
        template: sentence with ``{}`` for the class name.
        hub: its id on the Hugging Face hub, where the same images and names are known to be there.
        columns: image and label column on the hub, where they cannot be told.
        renamed: names to give to folders, or instead of names that are not what was meant.
    """

    title: str
    folder: str
    classes: int
    layout: Layout
    holds: tuple[str, ...]
    images: str = "."
    listing: str = ""
    template: str = _PHOTO
    hub: str = ""
    columns: tuple[str, str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def test_only(self) -> bool:
        """Whether it has no training images: a test under domain shift."""
        return self.layout in ("imagenet test", "imagenet v2")


def _split(title: str, folder: str, classes: int, images: str, name: str, template: str = _PHOTO) -> Standard:
    listing = f"split_zhou_{name}.json"
    return Standard(title, folder, classes, "split file", (f"{images}/", listing), images, listing, template)


def _cifar(classes: int, label: str, renamed: Mapping[str, str]) -> Standard:
    name, hub = f"cifar{classes}", f"uoft-cs/cifar{classes}"
    holds = ("train/", "test/")
    return Standard(
        f"CIFAR-{classes}", name, classes, "class folders", holds, hub=hub, columns=("img", label), renamed=renamed
    )


def _imagenet(title: str, folder: str, classes: int, images: str, layout: Layout = "imagenet test") -> Standard:
    inside = ("images/train/", "images/val/") if layout == "imagenet" else (f"{images}/",)
    holds = (*inside, "classnames.txt")
    return Standard(title, folder, classes, layout, holds, images, "classnames.txt", renamed=_SYNSETS)


STANDARD: dict[str, Standard] = {
    "imagenet": _imagenet("ImageNet", "imagenet", 1000, "images", "imagenet"),
    "caltech101": _split("Caltech101", "caltech-101", 100, "101_ObjectCategories", "Caltech101"),
    "oxford-pets": _split("OxfordPets", "oxford_pets", 37, "images", "OxfordPets", "a photo of a {}, a type of pet."),
    "stanford-cars": Standard(
        "StanfordCars",
        "stanford_cars",
        196,
        "split file",
        ("cars_train/", "cars_test/", "split_zhou_StanfordCars.json"),
        listing="split_zhou_StanfordCars.json",
    ),
    "flowers102": _split(
        "Flowers102", "oxford_flowers", 102, "jpg", "OxfordFlowers", "a photo of a {}, a type of flower."
    ),
    "food101": replace(
        _split("Food101", "food-101", 101, "images", "Food101", "a photo of {}, a type of food."), hub="ethz/food101"
    ),
    "fgvc-aircraft": Standard(
        "FGVCAircraft",
        "fgvc_aircraft",
        100,
        "aircraft",
        ("images/", "variants.txt", *(f"images_variant_{split}.txt" for split in ("train", "val", "test"))),
        "images",
        "variants.txt",
        "a photo of a {}, a type of aircraft.",
    ),
    "sun397": _split("SUN397", "sun397", 397, "SUN397", "SUN397"),
    "dtd": _split("DTD", "dtd", 47, "images", "DescribableTextures", "{} texture."),
    "eurosat": _split("EuroSAT", "eurosat", 10, "2750", "EuroSAT", "a centered satellite photo of {}."),
    "ucf101": _split("UCF101", "ucf101", 101, "UCF-101-midframes", "UCF101", "a photo of a person doing {}."),
    "cifar10": _cifar(10, "label", {}),
    "cifar100": _cifar(100, "fine_label", {"cra": "crab"}),  # a slip of the pen on the hub
    "tiny-imagenet": Standard(
        "Tiny-ImageNet",
        "tiny-imagenet-200",
        200,
        "tiny-imagenet",
        ("wnids.txt", "words.txt", "train/", "val/images/", "val/val_annotations.txt"),
        listing="words.txt",
    ),
    "imagenet-v2": _imagenet(
        "ImageNet-V2", "imagenetv2", 1000, "imagenetv2-matched-frequency-format-val", "imagenet v2"
    ),
    "imagenet-sketch": _imagenet("ImageNet-Sketch", "imagenet-sketch", 1000, "images"),
    "imagenet-a": _imagenet("ImageNet-A", "imagenet-adversarial", 200, "imagenet-a"),
    "imagenet-r": _imagenet("ImageNet-R", "imagenet-rendition", 200, "imagenet-r"),
}
"""By the name that ``load_data`` takes."""


def find_name(text: str) -> str | None:
    """The key of `STANDARD` that a person means: hyphens, underscores and capitals do not count, folder names do.

    >>> find_name("OxfordPets"), find_name("oxford_flowers"), find_name("photos")
    ('oxford-pets', 'flowers102', None)
    """
    return _NAMES.get(_plain(text))


def _plain(text: str) -> str:
    return text.casefold().replace("-", "").replace("_", "")


_NAMES = {_plain(alias): name for name, known in STANDARD.items() for alias in (name, known.title, known.folder)}
