"""Class names a person would write, from the names of folders."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from apd.util.text import first_of

WORDNET_ID = re.compile(r"^n\d{8}[-_. ]+(?=\S)")
NUMBER = re.compile(r"^(\d+)([-_. ]+)(?=\S)")
CAMEL = re.compile(r"(?<=[a-z]{2})(?=[A-Z])")
BARE_WORDNET_ID = re.compile(r"n\d{8}")
# c0, c1, ... are the class folders of public driver-distraction data; the others are what labelling tools write.
_NAMELESS = re.compile(
    r"n\d{8}|-?\d+|(c|cls|class|category|id|label) ?\d+|[a-z]{1,3}0\d+|(?=[a-f]*\d)[\da-f]{6,}", re.IGNORECASE
)


def readable_names(folders: Sequence[str]) -> tuple[str, ...]:
    """Readable names for folder names: ids off, underscores, hyphens and camelCase to spaces.

    A leading number goes only where it counts the folders (``1_``, ``2_``, … without a gap, from 0 or 1; ``007_``, of the
    same width in all; ``7.``), and the names stay different without. Otherwise it is a word: ``4_wheel_drive``.

    >>> readable_names(["n01440764-tench", "great_white_shark", "AnnualCrop"])
    ('tench', 'great white shark', 'Annual Crop')
    >>> readable_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ('Black footed Albatross', 'Laysan Albatross')
    """
    return tuple(_words(name) or name for name in without_ids(folders))


def without_ids(names: Sequence[str]) -> list[str]:
    """The names without a leading WordNet id and, under the rule of `readable_names`, without a leading number."""
    bare = [WORDNET_ID.sub("", name) for name in names]
    if _are_counted(bare):
        without = [NUMBER.sub("", name) for name in bare]
        bare = without if len(set(without)) == len(bare) else bare
    return bare


def _are_counted(names: Sequence[str]) -> bool:
    """Whether all names begin with a number that counts them instead of being one of their words."""
    heads = [head for head in map(NUMBER.match, names) if head]
    if len(heads) < len(names) or not heads:
        return False
    numbers = sorted(int(head[1]) for head in heads)
    consecutive = numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    padded = len({len(head[1]) for head in heads}) == 1 and any(head[1].startswith("0") for head in heads)
    dotted = all(
        head[2].startswith(".") and not name[head.end()].isdigit() for head, name in zip(heads, names, strict=True)
    )
    return consecutive or padded or dotted


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC); file systems of macOS give the decomposed one."""
    return unicodedata.normalize("NFC", name)


def _words(name: str) -> str:
    return " ".join(CAMEL.sub(" ", re.sub(r"[-_]+", " ", name)).split())


def nameless(names: Sequence[str]) -> list[str]:
    """Return the class names that mean nothing to a text encoder: WordNet ids, bare numbers, ``class 3``.

    >>> nameless(["n01440764", "7", "class 3", "c0", "7 eleven", "cat"])
    ['n01440764', '7', 'class 3', 'c0']
    """
    return [name for name in names if _NAMELESS.fullmatch(name)]


def warn_of_nameless(names: Sequence[str], source: str, hint: str) -> None:
    """Log a warning if some class names mean nothing to a text encoder, with ``hint`` on how to name them."""
    if found := nameless(names):
        warn(f"{source} has class names that say nothing to CLIP: {first_of(found, 'classes')}. {hint}")


@cache
def warn(message: str) -> None:
    """Log a warning on data, once per process however often the data are loaded."""
    logging.getLogger("apd").warning(message)
