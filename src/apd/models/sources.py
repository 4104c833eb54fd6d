"""What the name of a model stands for: a name of ours, code, a folder, a file, a repository, or one of these with a tower."""

from __future__ import annotations

from pathlib import Path

from apd.util.torch_files import SUFFIXES

BUILT_IN = {"glyphs": "the embedded CLIP: 32 px, digits and letters, pre-trained on rendered glyphs"}
NAMES, HUB = PREFIXES = ("open_clip:", "hf-hub:")
"""How names of open_clip's models begin: ``open_clip:ViT-B-32/laion2b_s34b_b79k``, ``hf-hub:owner/name``."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
"""The file that makes a folder or repository one of open_clip's format."""


def split_tower(name: str) -> tuple[str, Path] | None:
    """Take ``BASE+FILE`` apart; None for a name that is not of that form.

    >>> base, tower = split_tower("openai/clip-vit-base-patch32+fare.pt")
    >>> base, tower.name
    ('openai/clip-vit-base-patch32', 'fare.pt')
    """
    if "+" not in name or Path(name).exists():
        return None
    places = [place for place, letter in enumerate(name) if letter == "+" and 0 < place < len(name) - 1]
    pairs = [(name[:place], Path(name[place + 1 :])) for place in places]
    there = [pair for pair in pairs if pair[1].is_file()]
    likely = [pair for pair in pairs if pair[1].name.endswith(SUFFIXES)]
    return next(iter(there or likely), None)


def is_weights_file(name: str) -> bool:
    """Whether a name is that of a file of weights, there or not."""
    return not name.startswith(PREFIXES) and (
        Path(name).is_file() or (name.endswith(SUFFIXES) and not Path(name).is_dir())
    )


def absolute(name: str) -> str:
    """A model's name with absolute paths, so that a run finds it from anywhere.

    >>> absolute("openai/clip-vit-base-patch32")
    'openai/clip-vit-base-patch32'
    """
    parts = split_tower(name)
    if parts:
        return f"{absolute(parts[0])}+{parts[1].resolve()}"
    return str(Path(name).resolve()) if name not in BUILT_IN and Path(name).exists() else name
