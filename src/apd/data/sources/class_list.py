"""Class names from ``classes.txt``: which line names which class folder."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from apd.data.sources.class_names import BARE_WORDNET_ID, composed, nameless, readable_names, without_ids
from apd.errors import InputError
from apd.util.files import read_lines
from apd.util.text import short

_SEPARATOR = re.compile(r"[.)]?\s+|\s*[,;:=]\s*")
_TAIL = re.compile(r"(.*\S)(?:\s+|\s*[,;:=]\s*)(\S+)")
_COUNTED = re.compile(r"(.*\S)\s*[,;:=\t]\s*(\d+)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_CSV_QUOTES = re.compile(r'(^|[,;:=\t]\s*)"((?:[^"]|"")*)"(?=\s*(?:$|[,;:=\t]))')
_WAY_OUT = "write FOLDER,name in every line"


def read_class_names(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Class names from a ``classes.txt``, in the order of ``folders``.

    Every line has the same one of these forms; a file that could be read in two ways, or in part, is refused.

    - a folder's name, in any order; capitals, hyphens and underscores may differ: the line names its folder
    - a folder's name, then its readable name: ``n01440764,tench``, ``n01440764 tench``, ``3: antelope``; of a list of
      WordNet ids, lines without a folder are skipped
    - a folder's name, then a number, which is ignored: ``airplane 0``
    - a number or a WordNet id, then a folder's name: ``1 001.Black_footed_Albatross``
    - a readable name, with a number that counts the lines from 0 or 1 before it (``1<tab>antelope``) or after it
      (``antelope,1``), or without: named are the folders in text order, or in number order if all of them are numbers;
      refused where a person might list them in another order

    Quotes as in CSV files are removed, and Unicode is compared in its composed form (NFC).

    Args:
        path: the file.
        folders: the names of the class folders.

    Raises:
        InputError: if lines and folders do not match.
    """
    lines = [_unquoted(line) for line in read_lines(path)]
    known = [composed(folder) for folder in folders]
    named = _folder_names(lines, known) or _before_numbers(lines, known) or _pairs(path, lines, known)
    if named is None:
        heads, names = _heads(lines)
        named = _folder_names(names, known) if heads else None
        if named is None:
            as_text = [composed(folder) for folder in sorted(folders)]
            named = _in_order(path, _numbered(path, lines, as_text), as_text)
    return tuple(named[folder] for folder in known)


def names_alone(lines: Sequence[str]) -> list[str]:
    """Class names from lines of which no class folder is known, without what stands before every name.

    That is a WordNet id, or a number that counts the lines from 0 or 1, by which they are then ordered: ``n01440764,tench``,
    ``0: tench``, ``1<tab>tench``; or such a number after every name, ``tench,0``. Quotes as in CSV files are removed.
    """
    unquoted = [_unquoted(line) for line in lines]
    if all(line.startswith("- ") for line in unquoted):  # a list as YAML and Markdown have it
        unquoted = [line[2:].strip() for line in unquoted]
    if counted := _counted_after(unquoted):
        return without_ids(counted)
    heads, names = _heads(unquoted)
    if heads and len(set(names)) == len(names):
        if all(map(BARE_WORDNET_ID.fullmatch, heads)):
            return names
        if all(map(str.isdecimal, heads)) and (counted := _in_number_order([*map(int, heads)], names)):
            return counted
    numbered = [line for line in unquoted if re.match(r"\d+\s*[,;\t]", line)]
    if 1 < len(numbered) == len(unquoted) - 1:
        head = next(line for line in unquoted if line not in numbered)
        raise InputError(
            f"of the list of class names only {head!r} has no number before it, as the head of a table: remove that line, or "
            "write one class name per line."
        )
    return without_ids(unquoted)


def _counted_after(lines: Sequence[str]) -> list[str] | None:
    """Names in the order of the numbers that count them, one after every name: ``tench,0``; None for other lines."""
    tails = [tail for tail in map(_COUNTED.fullmatch, lines) if tail]  # not "digit 0", whose number is the name's
    names = [tail[1] for tail in tails]
    whole = len(tails) == len(lines) == len(set(names))
    return _in_number_order([int(tail[2]) for tail in tails], names) if whole else None


def _in_number_order(numbers: Sequence[int], names: Sequence[str]) -> list[str] | None:
    """The names in the order of their numbers, if these count them from 0 or 1; else None."""
    if sorted(numbers) not in [list(range(first, first + len(names))) for first in (0, 1)]:
        return None
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def _unquoted(line: str) -> str:
    return _CSV_QUOTES.sub(lambda match: match[1] + match[2].replace('""', '"'), composed(line))


def _folders_of(lines: Sequence[str], folders: Sequence[str]) -> list[str | None]:
    """The folder that each whole line is the name of, up to capitals, hyphens and underscores."""
    keys = [name.casefold() for name in readable_names(folders)]
    alike = dict(zip(keys, folders, strict=True)) if len(set(keys)) == len(keys) else {}
    lines_keys = [name.casefold() for name in readable_names(lines)]
    return [line if line in folders else alike.get(key) for line, key in zip(lines, lines_keys, strict=True)]


def _folder_names(lines: Sequence[str], folders: Sequence[str]) -> dict[str, str] | None:
    """Names by folder, where the lines are the names of all folders; else None."""
    found = _folders_of(lines, folders)
    if Counter(found) != Counter(folders):
        return None
    readable = dict(zip(folders, readable_names(folders), strict=True))
    raw = {*folders, *without_ids(folders)}
    return {
        folder: readable[folder] if bare in raw else bare
        for folder, bare in zip(found, without_ids(lines), strict=True)
        if folder is not None
    }


def _before_numbers(lines: Sequence[str], folders: Sequence[str]) -> dict[str, str] | None:
    """Names by folder, where every line is a folder's name and a number; else None."""
    tails = [_TAIL.fullmatch(line) for line in lines]
    if any(map(_NUMBER.fullmatch, folders)) or not all(tail and _NUMBER.fullmatch(tail[2]) for tail in tails):
        return None
    return _folder_names([tail[1] for tail in tails if tail], folders)


def _pairs(path: Path, lines: list[str], folders: Sequence[str]) -> dict[str, str] | None:
    """Names by folder, where lines begin with a folder's name; None where no line does."""
    numbers = _by_number(folders)
    whole = _folders_of(lines, folders)
    pairs = [None if folder else _pair(line, folders, numbers) for line, folder in zip(lines, whole, strict=True)]
    found = [pair for pair in pairs if pair]
    if not found:
        return None
    named = dict(found)
    unmatched = [line for line, pair in zip(lines, pairs, strict=True) if pair is None]
    if all(BARE_WORDNET_ID.match(line) for line in unmatched) and len(named) == len(folders):
        unmatched = []  # such as all of ImageNet's names for some of its classes
    missing = [folder for folder in folders if folder not in named]
    if unmatched:
        raise InputError(
            f"{path} names a class folder at the start of {len(found)} of its {len(lines)} lines, but not in "
            f"{_quoted(unmatched)}{f'; no line names {_quoted(missing)}' if missing else ''}: {_WAY_OUT}."
        )
    if missing or len(found) != len(folders):
        twice = [folder for folder, n in Counter(folder for folder, _ in found).items() if n > 1]
        what = f"no line for the folder {missing[0]}" if missing else f"more than one line for the folder {twice[0]}"
        raise InputError(f"{path} has {what}: it needs one line for each of the {len(folders)} class folders.")
    blank = [folder for folder, name in found if not name]
    if blank:
        raise InputError(f"{path} has no name after the folder {_quoted(blank)}: {_WAY_OUT}.")
    counted = [name for name in named.values() if re.match(r"\d+\s*[,;:=\t]", name)]
    if len(counted) == len(named) or not all(f"{folder},{name}" in lines for folder, name in found):
        _refuse_numbered(path, lines, named)
        _refuse_tails(path, [line for line, pair in zip(lines, pairs, strict=True) if pair], list(named), folders)
    return named


def _refuse_numbered(path: Path, lines: list[str], named: dict[str, str]) -> None:
    """Refuse names that all begin with another number, which may count the classes: ``n01440764 449 tench``."""
    heads, _ = _heads(list(named.values()))
    if len(set(heads)) == len(named):
        raise InputError(
            f"{path} has a number after every folder ({_quoted(lines)}), so it is unclear whether it belongs to the name: "
            f"{_WAY_OUT}."
        )


def _refuse_tails(path: Path, lines: list[str], meant: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse lines that mostly end in a folder's name: of another folder, or a number or an id, as ``airplane 0``."""
    numbers = _by_number(folders)
    odd = []
    for line, folder in zip(lines, meant, strict=True):
        tail = _TAIL.fullmatch(line)
        end = tail and (numbers.get(float(tail[2])) if _NUMBER.fullmatch(tail[2]) and numbers else tail[2])
        if end in folders and (end != folder or nameless([end])):
            odd.append(line)
    if 2 * len(odd) > len(lines):
        raise InputError(f"{path} has lines that end in the name of a class folder ({_quoted(odd)}): {_WAY_OUT}.")


def _pair(line: str, folders: Sequence[str], numbers: dict[float, str]) -> tuple[str, str] | None:
    """A folder's name and the rest of the line; the longest such name, as folders may have spaces and commas."""
    for separator in reversed(list(_SEPARATOR.finditer(line))):
        head, name = line[: separator.start()], line[separator.end() :]
        if head in folders:
            return head, name
        if _NUMBER.fullmatch(head) and float(head) in numbers:
            return numbers[float(head)], name
    return None


def _by_number(folders: Sequence[str]) -> dict[float, str]:
    """Folders by their number; empty unless all are numbers, and different ones."""
    if not all(_NUMBER.fullmatch(folder) for folder in folders):
        return {}
    numbers = {float(folder): folder for folder in folders}
    return numbers if len(numbers) == len(folders) else {}


def _heads(lines: list[str]) -> tuple[list[str], list[str]]:
    """The number or WordNet id that begins every line, and the rest; two empty lists unless all lines have one."""
    heads, names = [], []
    for line in lines:
        separator = _SEPARATOR.search(line)
        head = line[: separator.start()] if separator else ""
        if separator is None or not (head.isdecimal() or BARE_WORDNET_ID.fullmatch(head)):
            return [], []
        heads.append(head)
        names.append(line[separator.end() :])
    return heads, names


def _numbered(path: Path, lines: list[str], folders: Sequence[str]) -> list[str]:
    """Names in the order of the numbers that count the lines, without them; or the lines, where nothing counts them."""
    heads, names = _heads(lines)
    ids = [line for line in lines if BARE_WORDNET_ID.match(line)]
    if ids:
        raise InputError(
            f"{path} begins lines with WordNet ids that are not class folders ({_quoted(ids)}): {_WAY_OUT}."
        )
    numbers = [int(head) for head in heads]
    if heads and (counted := _in_number_order(numbers, names)):
        return counted
    if not _by_number(folders) and (counted := _counted_after(lines)):  # else a number may be a folder
        return counted
    for first in (0, 1):
        others = [line for place, line in enumerate(lines, first) if not re.match(rf"0*{place}[\s.,:;)]", line)]
        if 0 < len(others) < len(lines) - 1:
            raise InputError(f"{path} numbers some of its lines from {first}, but not {_quoted(others)}: {_WAY_OUT}.")
    if numbers and len(set(numbers)) == len(set(names)) == len(lines):
        raise InputError(
            f"{path} begins its lines with numbers that are neither folders nor 1 to {len(lines)} "
            f"({_quoted(lines)}), so it is unclear whether they belong to the names: {_WAY_OUT}."
        )
    return lines


def _in_order(path: Path, names: list[str], folders: list[str]) -> dict[str, str]:
    """Names by folder, where they are in the folders' order: by number if all are numbers, else as given."""
    if len(names) != len(folders):
        raise InputError(f"{path} has {len(names)} lines for {len(folders)} class folders: it needs one for each.")
    order = _order(path, folders)
    _refuse_tails(path, names, order, folders)
    matched = _folders_of(names, order)
    readable = dict(zip(order, readable_names(order), strict=True))
    elsewhere = any(match not in (None, folder) for match, folder in zip(matched, order, strict=True))
    # Folder names and ids are not readable names: a list of them with a typing error must not become the class names.
    raw = any(
        readable[match] != name or nameless([name]) if match else any(rest in order for rest in _heads([name])[1])
        for name, match in zip(names, matched, strict=True)
    )
    if elsewhere or raw:
        others = [name for name, match in zip(names, matched, strict=True) if match is None]
        raise InputError(f"{path} has names of class folders, but also {_quoted(others or names)}: {_WAY_OUT}.")
    return dict(zip(order, names, strict=True))


def _order(path: Path, as_text: list[str]) -> list[str]:
    """The folders in the order in which a person would list them, if there is only one such order."""
    numbers = _by_number(as_text)
    order = [numbers[number] for number in sorted(numbers)] or as_text
    natural = sorted(order, key=_natural)
    if natural != order and not any(number < 0 for number in numbers):
        start = max(
            0, next(place for place, pair in enumerate(zip(order, natural, strict=True)) if len(set(pair)) > 1) - 1
        )
        raise InputError(
            f"{path} names no folders, and may follow the order {', '.join(order[start : start + 3])}, … "
            f"or {', '.join(natural[start : start + 3])}, …: {_WAY_OUT}."
        )
    return order


def _natural(folder: str) -> list[str | int]:
    """A key that sorts numbers in a name by value (also ``1.9`` before ``1.10``), and ignores capitals and accents."""
    letters = "".join(char for char in unicodedata.normalize("NFD", folder) if not unicodedata.combining(char))
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", letters.casefold())]


def _quoted(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return f"{', '.join(short(line) for line in lines[:3])}{more}"
