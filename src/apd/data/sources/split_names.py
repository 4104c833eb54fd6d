"""Which folders are the splits train, val and test, however they are spelled."""

from __future__ import annotations

import re
from pathlib import Path

from apd.errors import InputError

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Folders that storage systems and tools put beside or into people's own.
_OF_SYSTEMS = {"@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "_cache"}
_LONGEST_FIRST = "|".join(sorted(WORDS, key=len, reverse=True))
_DECORATED = re.compile(rf"(.*?)({_LONGEST_FIRST})(.*)", re.DOTALL)
_WHOLE_WORD = re.compile(rf"(?<![a-z])({_LONGEST_FIRST})(?![a-z])")
_WAY_OUT = "name them train/, val/ and test/"


def subfolders(path: Path) -> list[Path]:
    """The visible folders in ``path``, sorted."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not hidden(p.name))


def hidden(name: str) -> bool:
    """Whether a folder of this name is left out."""
    return name.startswith((".", "__")) or name.casefold() in _OF_SYSTEMS


def split_folders(path: Path) -> dict[str, Path]:
    """The folders of train, val and test; empty for class folders without splits.

    Each may be called by any of `WORDS`, in any case, and all may have the same words around it: ``seg_train``,
    ``seg_test``. A split folder that holds only a folder of its own name stands for that one.

    Raises:
        InputError: for a split that is missing or there twice, other folders beside splits, and names of which it is
            unclear whether they are splits.
    """
    folders = subfolders(path)
    pairs = _alike(path, folders)
    if not pairs:
        return {}
    named = ", ".join(f"{folder.name}/" for _, folder in pairs)
    found = dict(pairs)
    others = [folder.name for folder in folders if folder not in [own for _, own in pairs]]
    if others and "train" not in found:
        raise InputError(
            f"{path} holds {others[0]}/ beside {named}, called like a split: move one of them out of the way or, if all are "
            "classes, rename that folder and name it in classes.txt (FOLDER,name in a line for each class)."
        )
    if others:
        raise InputError(f"{path} holds {others[0]}/ beside the splits {named}: move it out of the way.")
    if len(found) != len(pairs):
        raise InputError(f"{path} holds one split twice ({named}): keep one of them.")
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        way_out = "add it or rename another (only val/ may be missing: its images are then taken from train/)"
        raise InputError(f"{path} holds {named} but no {missing[0]}/: {way_out}.")
    return {split: _unwrapped(folder) for split, folder in found.items()}


def held_out_folders(path: Path) -> list[Path]:
    """The folders whose names hold a word for validation or testing, as in ``seg_test``."""
    words = [(folder, _WHOLE_WORD.search(folder.name.casefold())) for folder in subfolders(path)]
    return [folder for folder, word in words if word and WORDS[word[1]] != "train"]


def _alike(path: Path, folders: list[Path]) -> list[tuple[str, Path]]:
    """The splits among the folders: those called so and nothing more, or else those with the same words around it."""
    groups: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for folder in folders:
        if match := _DECORATED.fullmatch(folder.name.casefold()):
            groups.setdefault((match[1], match[3]), []).append((WORDS[match[2]], folder))
    exact = groups.pop(("", ""), [])
    splits = {split for split, _ in exact}
    if exact and (splits != {"train"} or len(exact) == len(folders)):  # "train" alone is a vehicle
        if "train" not in splits:
            _refuse_half_named(path, folders)
        return exact
    pairs = [group for group in groups.values() if {"train", "test"} <= {split for split, _ in group}]
    if len(pairs) > 1:
        named = ", ".join(f"{folder.name}/" for group in pairs for _, folder in group)
        raise InputError(f"{path} holds several pairs of splits ({named}): keep one, or {_WAY_OUT}.")
    if not pairs:
        _refuse_half_named(path, folders)
    return pairs[0] if pairs else []


def _refuse_half_named(path: Path, folders: list[Path]) -> None:
    words = [_WHOLE_WORD.search(folder.name.casefold()) for folder in folders]
    splits = {WORDS[word[1]] for word in words if word}
    if all(words) and "train" in splits and len(splits) > 1:
        named = ", ".join(f"{folder.name}/" for folder in folders[:4])
        raise InputError(f"{path} holds {named}, which may be splits or classes: if splits, {_WAY_OUT}.")


def _unwrapped(folder: Path) -> Path:
    inner = [path for path in folder.iterdir() if not hidden(path.name)]
    alone = len(inner) == 1 and inner[0].name.casefold() == folder.name.casefold() and inner[0].is_dir()
    return inner[0] if alone else folder
