"""Other words for the same classes, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apd.errors import InputError, nearest
from apd.evaluation.wording.edits import Editor, Features
from apd.models.classifier import PromptedCLIP
from apd.util.files import read_lines
from apd.util.text import first_of
from apd.util.yaml_files import read_yaml

KINDS = ("typos", "edits", "synonyms", "templates")
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven that CLIP's authors chose for ImageNet (Radford 2021, their notebook on prompt engineering)."""


@dataclass(frozen=True)
class Variant:
    """One way to name all classes.

    Args:
        class_names: in the order of the labels.
        templates: sentences with ``{}`` for the name.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def of(self, classifier: PromptedCLIP) -> PromptedCLIP:
        """Return the classifier by these words; prompts specific to classes stay with their classes.

        Raises:
            InputError: a name that does not fit into the context, a class named like another.
        """
        return PromptedCLIP(classifier.encoder, classifier.prompts, self.class_names, self.templates)


@dataclass(frozen=True)
class Sources:
    """Where variants come from.

    Args:
        n: variants per kind at most; templates and synonyms have as many as there are.
        distance: characters per name that typos and edits change.
        candidates: draws per choice of the search for edits.
        seed: decides what is drawn.
        synonyms: alternative names by class; None: none are known.
        templates: sentences with ``{}``.
        words: words that no edit may make.
    """

    n: int = 5
    distance: int = 1
    candidates: int = 20
    seed: int = 0
    synonyms: Mapping[str, tuple[str, ...]] | None = None
    templates: tuple[str, ...] = TEMPLATES
    words: frozenset[str] = frozenset()

    def variants(self, kind: str, classifier: PromptedCLIP) -> list[Variant]:
        """Return the variants of a kind, each different from the original wording.

        Raises:
            InputError: an unknown kind, or synonyms without a source.
        """
        names, templates = classifier.class_names, classifier.templates
        editor = Editor(names, self.distance, self.words)
        if kind == "typos":
            found = [Variant(editor.typos(f"{self.seed}/typos/{number}"), templates) for number in range(self.n)]
        elif kind == "edits":
            found = [
                Variant(
                    editor.searched(_features(classifier), self.candidates, f"{self.seed}/edits/{number}"), templates
                )
                for number in range(self.n)
            ]
        elif kind == "synonyms":
            found = [Variant(one, templates) for one in self._synonyms(names)]
        elif kind == "templates":
            found = [Variant(names, (template,)) for template in self.templates]
        else:
            raise InputError(f"No kind of change {kind!r}. {nearest(kind, KINDS)}")
        others = [one for one in dict.fromkeys(found) if one != Variant(names, templates)]
        if not others:
            raise InputError(
                f"There are no {kind} of {first_of(names, 'classes')} but the words themselves; leave {kind} out."
            )
        return others

    def _synonyms(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The names with the first, second, … alternative in place of each that has so many."""
        if self.synonyms is None:
            raise InputError("Synonyms need a file of alternative names: --synonyms FILE (see docs/wording.md).")
        unknown = [name for name in self.synonyms if name not in names]
        if unknown:
            raise InputError(f"The synonyms are of {unknown[0]!r}, which is not a class. {nearest(unknown[0], names)}")
        most = max((len(others) for others in self.synonyms.values()), default=0)
        found = []
        for number in range(most):
            others = [self.synonyms.get(name, ()) for name in names]
            found.append(
                tuple(own[number] if number < len(own) else name for own, name in zip(others, names, strict=True))
            )
        return found


def _features(classifier: PromptedCLIP) -> Features:
    def features(names: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return Variant(tuple(names), classifier.templates).of(classifier).class_features()

    return features


def read_synonyms(file: str | Path) -> dict[str, tuple[str, ...]]:
    """Read alternative names from a YAML or JSON file, ``class: [name, ...]``.

    Raises:
        InputError: a file of another form.
    """
    content = read_yaml(Path(file), texts=True)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file} must map class names to lists of other names, as in 'cat: [house cat, kitty]'.")
    found = {}
    for name, others in content.items():
        if not isinstance(others, list) or not all(isinstance(one, str) and one.strip() for one in others):
            raise InputError(f"{file}: the alternatives of {str(name)!r} must be a list of names, got {others!r}.")
        found[str(name)] = tuple(others)
    return found


def read_entries(file: str | Path) -> tuple[str, ...]:
    """Read templates or words, one per line; empty lines do not count.

    Raises:
        InputError: see `apd.util.files.read_lines`; nothing in it.
    """
    lines = tuple(read_lines(Path(file)))
    if not lines:
        raise InputError(f"{file} is empty; it should have one entry per line.")
    return lines
