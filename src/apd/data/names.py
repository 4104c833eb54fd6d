"""Class names a person would write, from the names of folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from apd.errors import InputError

WORDNET_ID = re.compile(r"^n\d{8}[-_. ]+(?=\S)")
NUMBER = re.compile(r"^\d+[-_. ]+(?=\S)")
CAMEL = re.compile(r"(?<=[a-z]{2})(?=[A-Z])")


def readable_names(folders: Sequence[str]) -> tuple[str, ...]:
    """Readable names for folder names: ids off, underscores, hyphens and camelCase to spaces.

    A leading number goes only where every folder has one and the names stay different without.

    >>> readable_names(["n01440764-tench", "great_white_shark", "AnnualCrop"])
    ('tench', 'great white shark', 'Annual Crop')
    >>> readable_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ('Black footed Albatross', 'Laysan Albatross')
    """
    bare = [WORDNET_ID.sub("", name) for name in folders]
    if all(NUMBER.match(name) for name in bare):
        without = [NUMBER.sub("", name) for name in bare]
        bare = without if len(set(without)) == len(bare) else bare
    return tuple(_words(name) or name for name in bare)


def _words(name: str) -> str:
    return " ".join(CAMEL.sub(" ", re.sub(r"[-_]+", " ", name)).split())


def read_class_names(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Class names from a ``classes.txt``, in the order of ``folders`` (sorted).

    Either every line starts with a folder's name and goes on with its readable name (``n01440764,tench`` or
    ``n01440764 tench``), in any order; or every line is a readable name, in sorted folder order.

    Raises:
        InputError: if lines and folders do not match.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}): it should be UTF-8 text, one class a line.") from error
    pairs = [_pair(line) for line in lines]
    if pairs and all(name and folder in folders for folder, name in pairs):
        named = dict(pairs)
        missing = [folder for folder in folders if folder not in named]
        if missing or len(pairs) != len(folders):
            what = f"no line for the folder {missing[0]}" if missing else "two lines for one folder"
            raise InputError(f"{path} has {what}: it needs one line for each of the {len(folders)} class folders.")
        return tuple(named[folder] for folder in folders)
    if len(lines) != len(folders):
        raise InputError(f"{path} has {len(lines)} lines for {len(folders)} class folders: it needs one for each.")
    return tuple(lines)


def _pair(line: str) -> tuple[str, str]:
    folder, _, name = line.partition(",") if "," in line else line.partition(" ")
    return folder.strip(), name.strip()
