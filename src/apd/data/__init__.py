"""Data: named classes and images from a folder, a split file, the hub or the built-in set."""

from apd.data.augment import random_resized_crop_flip
from apd.data.dataset import Dataset, Decoded, ImageSet
from apd.data.load import list_data, load_data, short_name

__all__ = ["Dataset", "Decoded", "ImageSet", "list_data", "load_data", "random_resized_crop_flip", "short_name"]
