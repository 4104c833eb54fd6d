"""What is known of every sample, kept in files so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apd.errors import ApdError, InputError
from apd.util.files import AnyPath, append_lines, parse_json, read_bounded, read_json, user_path, write_atomic
from apd.util.json_shape import COUNT, NUMBER, TEXT, Each, Table, check_shape

Key = tuple[str, str, int]
"""Id, fingerprint of the pixels and label: what makes a sample the same sample."""


def digest(circumstances: Mapping[str, Any]) -> str:
    """Hash the circumstances of what a file keeps, for its name."""
    return hashlib.sha256(json.dumps(dict(circumstances), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """One sample under one attack.

    Args:
        id: the sample's id.
        pixels: fingerprint of its pixels, so that another image under the same id is another sample.
        label: the right class.
        predicted: the class after the attack.
        by: the part of the attack that fooled it; None where it stands.
    """

    id: str
    pixels: str
    label: int
    predicted: int
    by: str | None = None

    @property
    def key(self) -> Key:
        """What makes it the same sample."""
        return self.id, self.pixels, self.label


@dataclass
class Record:
    """All outcomes of one model under one attack, in a file of JSON lines that grows.

    The first line holds the circumstances. Each batch, or part of an attack on it, appends a line with its seconds,
    batch size and the library's warnings, one line per finished sample, and one that names the samples that withstood
    the parts so far. A later line about a sample counts. A last line that a kill left unfinished is cut off.

    Args:
        path: the file; None keeps it in memory only.
        circumstances: what the outcomes depend on.
        earlier: seconds spent by earlier calls, out of ``seconds``.
        withstood: parts of the attack that unfinished samples withstood.
        begun: whether the file has its first line.
    """

    path: Path | None
    circumstances: dict[str, Any]
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    earlier: float = 0.0
    flags: Counter[str] = field(default_factory=Counter)
    batch_sizes: set[int] = field(default_factory=set)
    withstood: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    begun: bool = False

    @classmethod
    def load(cls, path: Path, circumstances: dict[str, Any]) -> Record:
        """Read the record in this file; an empty one where there is none.

        Raises:
            InputError: a file that is not such a record.
        """
        record = cls(path, circumstances)
        if path.exists():
            for line in read_bounded(path, _WAY_OUT, _LARGEST).splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                record._read(parse_json(line, path, _WAY_OUT))
        record.earlier = record.seconds
        return record

    def _read(self, row: Any) -> None:
        assert self.path is not None
        kind = next((key for key in _ROWS if isinstance(row, dict) and key in row), "seconds")
        check_shape(row, _ROWS[kind] if self.begun else _FIRST, self.path, _WAY_OUT)
        self.begun = True
        if "id" in row:
            self._take([Outcome(row["id"], row["pixels"], row["label"], row["predicted"], row.get("by"))])
        elif "withstood" in row:
            if any(list(map(type, sample)) != [str, str, int] for sample in row["samples"]):
                raise InputError(f"{self.path} is damaged (samples are not id, pixels and label); {_WAY_OUT}.")
            self._leave([(id_, pixels, label) for id_, pixels, label in row["samples"]], row["withstood"])
        else:
            self._count(float(row["seconds"]), Counter(row["flags"]), row["batch_sizes"])

    def _take(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.outcomes[outcome.key] = outcome
            self.withstood.pop(outcome.key, None)

    def _leave(self, keys: Iterable[Key], parts: Sequence[str]) -> None:
        self.withstood.update(dict.fromkeys(keys, tuple(parts)))

    def _count(self, seconds: float, flags: Counter[str], batch_sizes: Iterable[int]) -> None:
        self.seconds += seconds
        self.flags += flags
        self.batch_sizes.update(batch_sizes)

    def add(
        self,
        outcomes: Sequence[Outcome],
        seconds: float,
        flags: Counter[str],
        batch_size: int,
        standing: Sequence[Key] = (),
        parts: Sequence[str] = (),
    ) -> None:
        """Take in a batch, or a part of an attack on it; a kill at any moment loses at most what is not yet added.

        Args:
            outcomes: finished samples.
            seconds: that they and the standing ones took.
            flags: warnings of the attack's library.
            batch_size: images at a time.
            standing: samples of the batch that are not finished.
            parts: the parts of the attack that those withstood, in order.
        """
        self._count(seconds, flags, [batch_size])
        self._take(outcomes)
        self._leave(standing, parts)
        if self.path is None:
            return
        spent = {"seconds": round(seconds, 3), "flags": dict(flags), "batch_sizes": [batch_size]}
        rows: list[dict[str, Any]] = [] if self.begun else [{"circumstances": self.circumstances, **_NOTHING_SPENT}]
        rows += [spent, *map(asdict, outcomes)]
        if standing:
            rows.append({"withstood": list(parts), "samples": standing})
        if self.begun and not self.path.exists():
            raise ApdError(
                f"{self.path} has gone while it was written to (removed, moved or unmounted). Put it back, and start again."
            )
        append_lines(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.begun = True


_WAY_OUT = "remove it to compute its outcomes again"
_LARGEST = 2**30
"""Bytes of a record: five million samples."""
_SPENT = {"seconds": NUMBER, "flags": Table(COUNT), "batch_sizes": Each(COUNT)}
_FIRST = {"circumstances": {}, **_SPENT}
_ROWS = {
    "id": {"id": TEXT, "pixels": TEXT, "label": COUNT, "predicted": COUNT, "by?": (None, TEXT)},
    "withstood": {"withstood": Each(TEXT), "samples": Each(Each((TEXT, COUNT)))},
    "seconds": _SPENT,
}
"""What the lines after the first hold, by the key that tells them apart."""
_NOTHING_SPENT: dict[str, Any] = {"seconds": 0.0, "flags": {}, "batch_sizes": []}


class Store:
    """A folder of records; the file's name is the attack and a hash of the circumstances.

    Args:
        folder: None keeps everything in memory only.
    """

    def __init__(self, folder: AnyPath | None) -> None:
        self.folder = None if folder is None else user_path(folder)

    def record(self, circumstances: dict[str, Any]) -> Record:
        """The record of these circumstances (which name the ``attack``)."""
        if self.folder is None:
            return Record(None, circumstances)
        return Record.load(self._path(circumstances, "jsonl"), circumstances)

    def load(self, circumstances: dict[str, Any]) -> Any:
        """What `save` kept under these circumstances; None where there is nothing."""
        path = self._path(circumstances, "json") if self.folder is not None else None
        if path is None or not path.exists():
            return None
        return read_json(path, _WAY_OUT)

    def save(self, circumstances: dict[str, Any], value: Any) -> None:
        """Keep a JSON value under these circumstances."""
        if self.folder is not None:
            write_atomic(self._path(circumstances, "json"), json.dumps(value, indent=1) + "\n")

    def _path(self, circumstances: dict[str, Any], suffix: str) -> Path:
        assert self.folder is not None
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", circumstances["attack"])[:60]  # an attack from elsewhere has any name
        return self.folder / f"{name}-{digest(circumstances)}.{suffix}"
