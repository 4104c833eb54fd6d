"""Settings in YAML that a stranger may have written: bounded in size, in values and in depth."""

from __future__ import annotations

import math
import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from apd.errors import InputError
from apd.util.text import short
from apd.util.trust import note_code

LARGEST_SETTINGS = 1_000_000
"""Bytes of a settings file."""
MOST_VALUES = 100_000
"""Values in settings, each counted as often as an alias repeats it."""


def read_yaml(file: Path, *, texts: bool = False) -> Any:
    """The content of a settings file.

    Args:
        file: where it is.
        texts: read every value as the text that stands there: ``no`` and ``010`` are words of a list of names.

    Raises:
        InputError: a missing, unreadable or oversized file, one that is not YAML, or one that unfolds without end.
    """
    try:
        with open(file, "rb") as stream:
            content = stream.read(LARGEST_SETTINGS + 1)
        if len(content) > LARGEST_SETTINGS:
            raise InputError(f"{file} is larger than {LARGEST_SETTINGS // 1000} kB, too large for a settings file.")
        found = parse_yaml(content.decode("utf-8-sig"), str(file), texts=texts)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {str(file)!r}.") from error
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read {file}: it is not UTF-8 text ({error.reason}).") from error
    note_code(found, str(file))
    return found


def parse_yaml(text: str, place: str, *, texts: bool = False) -> Any:
    """What a YAML text says; ``place`` is where it came from, for messages; ``texts`` as for `read_yaml`.

    Raises:
        InputError: text that is not YAML; aliases that stand for more than `MOST_VALUES` values, or for themselves.
    """
    try:
        loader = _TextLoader(text) if texts else _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        # Before values are made of it: merging repeated mappings is what takes for ever.
        if _unfolded(root, {}) > MOST_VALUES:
            raise InputError(f"{place}: its aliases unfold to more than {MOST_VALUES} values, too many for settings.")
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise InputError(_yaml_problem(place, error)) from error
    except RecursionError as error:
        raise InputError(f"{place}: nested too deeply for settings.") from error
    except InputError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        # A date or a number that YAML recognises and Python cannot hold, or a value of another kind than its tag says.
        raise InputError(f"{place}: not YAML: {error}.") from error


def dump_yaml(value: Any) -> str:
    """Write plain values so that `parse_yaml` reads the same ones."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Makes plain values, and stops at more events than `MOST_VALUES` values can have: parsing them takes minutes."""

    _events = 0

    def get_event(self) -> Any:
        self._events += 1
        if self._events > 2 * MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        return super().get_event()  # type: ignore[no-untyped-call]


class _Dumper(yaml.SafeDumper):
    """Quotes each text that would be read as a number."""


_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    # As YAML 1.2 has it, and everybody writes: to PyYAML, which speaks 1.1, 1e-3 and 1.5e3 are texts.
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


class _TextLoader(_Loader):
    """Makes texts, lists and mappings only."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = {}


class _TwiceError(yaml.MarkedYAMLError):
    """A name that a section has twice, which YAML itself allows."""


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values below a node, those of an alias counted each time; infinite where one holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted: who meets it on the way has met itself
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
        entries = node.value if isinstance(node, yaml.SequenceNode) else chain.from_iterable(node.value)
        known[id(node)] = 1 + sum(_unfolded(entry, known) for entry in entries)
    return known[id(node)]


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Refuse a name that a section has twice: of a row that was copied and not renamed, YAML keeps the last in silence."""
    names = set[tuple[str, str]]()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        if (key.tag, key.value) in names:
            problem = f"{short(key.value)} is there twice in one section; rename one, or take it away"
            raise _TwiceError(problem=problem, problem_mark=key.start_mark)
        names.add((key.tag, key.value))


def _yaml_problem(place: str, error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, in one line: file, line, column and what the parser says."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).partition("\n")[0]
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    kind = "" if isinstance(error, _TwiceError) else "not YAML: "
    return f"{place}{where}: {kind}{problem}."
