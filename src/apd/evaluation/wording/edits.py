"""Character edits of class names: random typos, and the edits that move a class feature farthest.

The threat is LEAF's (Abad Rocamora 2025, arXiv 2506.03355): at most ``distance`` characters of a name are inserted, deleted or
replaced (Levenshtein distance), and no edit makes a word that means something else.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

from apd.errors import InputError

Features = Callable[[Sequence[str]], Tensor]
"""Class names, all different, to class features (C, D) of unit length."""
T = TypeVar("T")
LETTERS = string.ascii_lowercase
TRIES = 1000
"""Draws of an edit before a name is taken for one that cannot be edited."""
_WORD = re.compile(r"\w+")


def words_of(texts: Collection[str]) -> set[str]:
    """Return the words of these texts in small letters."""
    return {word.lower() for text in texts for word in _WORD.findall(text)}


def levenshtein(a: str, b: str) -> int:
    """Return how many characters must be inserted, deleted or replaced to turn ``a`` into ``b``.

    >>> levenshtein("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, mine in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (mine != other))
    return row[-1]


def edited(name: str, place: int, letter: str) -> str:
    """Edit one character: even places insert ``letter``, odd ones replace a character, or delete it if the letter is empty.

    >>> edited("cat", 0, "x"), edited("cat", 1, "x"), edited("cat", 5, ""), edited("cat", 6, "x")
    ('xcat', 'xat', 'ca', 'catx')
    """
    at, replaces = divmod(place, 2)
    return name[:at] + letter + name[at + replaces :]


class Editor:
    """Draws edits that keep to the threat.

    Args:
        names: the class names.
        distance: characters per name that may change.
        words: words that no edit may make, besides those of the names.

    Raises:
        InputError: a distance below 1.
    """

    def __init__(self, names: Sequence[str], distance: int = 1, words: Collection[str] = ()) -> None:
        if distance < 1:
            raise InputError(
                f"distance must be at least 1, got {distance}: it is the number of characters that may change."
            )
        self.names, self.distance = tuple(names), distance
        self.refused = words_of(names) | words_of(words)

    def allowed(self, name: str, original: str) -> bool:
        """Whether ``name`` is an edit of ``original`` within the threat."""
        new = words_of([name]) - words_of([original])
        return bool(
            name.strip() == name
            and words_of([name])
            and name != original
            and name not in self.names
            and not new & self.refused
            and levenshtein(name, original) <= self.distance
        )

    def draw(self, name: str, original: str, rng: Random) -> str:
        """Return ``name`` with one more random edit; the name itself where none is allowed."""
        for _ in range(TRIES):
            place = rng.randrange(2 * len(name) + 1)
            deletes = place % 2 == 1 and rng.random() < 0.5
            found = edited(name, place, "" if deletes else rng.choice(LETTERS))
            if self.allowed(found, original):
                return found
        return name

    def typos(self, seed: str) -> tuple[str, ...]:
        """Return all names with ``distance`` random edits each, all different."""
        found: list[str] = []
        for original in self.names:
            rng, name = Random(f"{seed}/{original}"), original
            for _ in range(self.distance):
                name = self.draw(name, original, rng)
            found.append(original if name in found else name)
        return tuple(found)

    def searched(self, features: Features, candidates: int, seed: str) -> tuple[str, ...]:
        """Return the names whose class features are farthest from the originals' that a greedy search finds.

        As in LEAF, every edit chooses a place among ``candidates`` drawn ones, by what a space there does, and then a letter
        among as many: ``2 * candidates * distance`` passes of the text tower over all class names.

        Args:
            features: class names to class features.
            candidates: draws per choice (LEAF's rho).
            seed: decides the draws.
        """
        clean, current = features(self.names), list(self.names)
        for edit in range(self.distance):
            rngs = [Random(f"{seed}/{edit}/{name}") for name in self.names]
            places = [
                _sample(rng, list(range(2 * len(name) + 1)), candidates)
                for rng, name in zip(rngs, current, strict=True)
            ]
            probes = [[edited(name, place, " ") for place in own] for name, own in zip(current, places, strict=True)]
            chosen = self._farthest(probes, features, clean, current, check=False)
            at = [own[index] if index is not None else 0 for own, index in zip(places, chosen, strict=True)]
            options = []
            for name, place, rng in zip(current, at, rngs, strict=True):
                letters = _sample(rng, [*LETTERS, *([""] if place % 2 else [])], candidates)
                options.append([name, *(edited(name, place, letter) for letter in letters)])
            best = self._farthest(options, features, clean, current, check=True)
            for place, (own, index) in enumerate(zip(options, best, strict=True)):
                # Each class chose by itself, and two may have chosen the same name.
                if (name := own[index or 0]) not in current[:place] + current[place + 1 :]:
                    current[place] = name
        return tuple(current)

    def _farthest(
        self, options: Sequence[Sequence[str]], features: Features, clean: Tensor, current: Sequence[str], check: bool
    ) -> list[int | None]:
        """Index of each class's option whose feature is farthest from its clean one; None where there is none.

        All classes try their next option together, so that prompts with a context per class are searched as well.
        """
        best: list[int | None] = [None] * len(current)
        reached = torch.full((len(current),), -1.0)
        for turn in range(max(map(len, options))):
            names, tried = list(current), [False] * len(current)
            for place, own in enumerate(options):
                if turn >= len(own) or not own[turn].strip() or own[turn] in names[:place] + names[place + 1 :]:
                    continue
                if not check or own[turn] == current[place] or self.allowed(own[turn], self.names[place]):
                    names[place], tried[place] = own[turn], True
            moved = (features(names) - clean).square().sum(dim=-1).cpu()
            for place, ready in enumerate(tried):
                if ready and float(moved[place]) > float(reached[place]):
                    best[place], reached[place] = turn, moved[place]
        return best


def _sample(rng: Random, items: list[T], most: int) -> list[T]:
    return rng.sample(items, min(most, len(items)))
