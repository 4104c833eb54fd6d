"""The standard data sets of prompt learning: where each lies, how it is laid out, what its classes are called.

Folders, split files and templates are those of CoOp (arXiv 2109.01134: its DATASETS.md and CUSTOM_TEMPLATES), so that
the one folder in which its users keep all data sets serves here as it is. CIFAR and Tiny-ImageNet are not in CoOp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["split file", "class folders", "aircraft", "imagenet", "imagenet test", "imagenet v2", "tiny-imagenet"]
TEST_ONLY: frozenset[Layout] = frozenset({"imagenet test", "imagenet v2"})


@dataclass(frozen=True)
class Standard:
    """One data set.

    Args:
        title: as papers write it.
        folder: its folder below the root of all data sets.
        classes: number of classes; loading refuses another number.
        layout: which reader takes it.
        images: the folder of the images, below its own; ``.`` where split file and class folders lie side by side.
        listing: the split file, or the file of class names; empty where folders tell the names.
        template: sentence with ``{}`` for the class name.
        mirror: whether an image flipped left to right is still one of its class.
        hub: its id on the Hugging Face hub, where the same images and names are known to be there.
        columns: image and label column on the hub, where they cannot be told.
        renamed: names to give to folders, or instead of names that are not what was meant.
    """

    title: str
    folder: str
    classes: int
    layout: Layout
    images: str
    listing: str = ""
    template: str = "a photo of a {}."
    mirror: bool = True
    hub: str = ""
    columns: tuple[str, str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> tuple[str, ...]:
        """What must be in the folder, as a person would write it."""
        more = {
            "class folders": ("train/", "test/"),
            "aircraft": tuple(f"images_variant_{split}.txt" for split in ("train", "val", "test")),
            "imagenet": ("images/train/", "images/val/"),
            "tiny-imagenet": ("wnids.txt", "train/", "val/images/", "val/val_annotations.txt"),
        }
        images = () if self.images == "." else (f"{self.images}/",)
        return (*more.get(self.layout, images), *([self.listing] if self.listing else []))

    @property
    def test_only(self) -> bool:
        """Whether it has no training images: a test under domain shift."""
        return self.layout in TEST_ONLY


def _split(title: str, folder: str, classes: int, images: str, listing: str, template: str, hub: str = "") -> Standard:
    return Standard(title, folder, classes, "split file", images, f"split_zhou_{listing}.json", template, hub=hub)


_PHOTO = "a photo of a {}."
# CLIP's names, which CoOp's classnames.txt copies, call two pairs of classes alike (openai/CLIP issues 235 and 465):
# the text alone could never tell them apart. These are WordNet's own names of the rarer two.
_SYNSETS = {"n04355933": "sunglass", "n04008634": "projectile"}

STANDARD: dict[str, Standard] = {
    "imagenet": Standard("ImageNet", "imagenet", 1000, "imagenet", "images", "classnames.txt", renamed=_SYNSETS),
    "caltech101": _split("Caltech101", "caltech-101", 100, "101_ObjectCategories", "Caltech101", _PHOTO),
    "oxford-pets": _split("OxfordPets", "oxford_pets", 37, "images", "OxfordPets", "a photo of a {}, a type of pet."),
    "stanford-cars": _split("StanfordCars", "stanford_cars", 196, ".", "StanfordCars", _PHOTO),
    "flowers102": _split(
        "Flowers102", "oxford_flowers", 102, "jpg", "OxfordFlowers", "a photo of a {}, a type of flower."
    ),
    "food101": _split(
        "Food101", "food-101", 101, "images", "Food101", "a photo of {}, a type of food.", hub="ethz/food101"
    ),
    "fgvc-aircraft": Standard(
        "FGVCAircraft",
        "fgvc_aircraft",
        100,
        "aircraft",
        "images",
        "variants.txt",
        "a photo of a {}, a type of aircraft.",
    ),
    "sun397": _split("SUN397", "sun397", 397, "SUN397", "SUN397", _PHOTO),
    "dtd": _split("DTD", "dtd", 47, "images", "DescribableTextures", "{} texture."),
    "eurosat": _split("EuroSAT", "eurosat", 10, "2750", "EuroSAT", "a centered satellite photo of {}."),
    "ucf101": _split("UCF101", "ucf101", 101, "UCF-101-midframes", "UCF101", "a photo of a person doing {}."),
    "cifar10": Standard(
        "CIFAR-10", "cifar10", 10, "class folders", ".", hub="uoft-cs/cifar10", columns=("img", "label")
    ),
    # The hub's list of names has a slip of the pen.
    "cifar100": Standard(
        "CIFAR-100",
        "cifar100",
        100,
        "class folders",
        ".",
        hub="uoft-cs/cifar100",
        columns=("img", "fine_label"),
        renamed={"cra": "crab"},
    ),
    "tiny-imagenet": Standard("Tiny-ImageNet", "tiny-imagenet-200", 200, "tiny-imagenet", ".", "words.txt"),
    "imagenet-v2": Standard(
        "ImageNet-V2",
        "imagenetv2",
        1000,
        "imagenet v2",
        "imagenetv2-matched-frequency-format-val",
        "classnames.txt",
        renamed=_SYNSETS,
    ),
    "imagenet-sketch": Standard(
        "ImageNet-Sketch", "imagenet-sketch", 1000, "imagenet test", "images", "classnames.txt", renamed=_SYNSETS
    ),
    "imagenet-a": Standard(
        "ImageNet-A", "imagenet-adversarial", 200, "imagenet test", "imagenet-a", "classnames.txt", renamed=_SYNSETS
    ),
    "imagenet-r": Standard(
        "ImageNet-R", "imagenet-rendition", 200, "imagenet test", "imagenet-r", "classnames.txt", renamed=_SYNSETS
    ),
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
