"""What a process of the bench has loaded: each CLIP and each data set once."""

from __future__ import annotations

from functools import cache, lru_cache

from apd.data import Dataset
from apd.data.settings import DataSettings
from apd.models import DualEncoder, EncoderInfo
from apd.models.shared import shared_clip


@lru_cache(maxsize=2)
def encoder(source: str, device: str) -> DualEncoder:
    """The CLIP at ``source``; the suite's own stays in memory beside one other."""
    return shared_clip(source, device=device)


@cache
def encoder_info(source: str) -> EncoderInfo:
    """What is known of the CLIP at ``source``, its hashes included."""
    return encoder(source, "cpu").info


@lru_cache(maxsize=16)
def dataset(settings: DataSettings) -> Dataset:
    """The data set of a section; images are not decoded."""
    return settings.load()


def whole(settings: DataSettings) -> Dataset:
    """Load a data set with all its training images and classes, whatever the shots."""
    return dataset(settings.labelled().model_copy(update={"shots": "all", "seed": 0, "classes": "all"}))
