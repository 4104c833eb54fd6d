"""Data: named classes and images from a folder, a split file, the hub, the built-in set or a standard one by name."""

from apd.data.augment import random_resized_crop_flip
from apd.data.dataset import Dataset, Decoded, ImageSet
from apd.data.listing import list_data
from apd.data.load import load_data, same_source, short_name

__all__ = [
    "Dataset",
    "Decoded",
    "ImageSet",
    "list_data",
    "load_data",
    "random_resized_crop_flip",
    "same_source",
    "short_name",
]
