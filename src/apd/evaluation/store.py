"""What is known of every sample, kept in files so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.files import write_atomic


@dataclass(frozen=True)
class Outcome:
    """One sample under one attack.

    Args:
        id: of the sample.
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
    def key(self) -> tuple[str, str, int]:
        """What makes it the same sample."""
        return self.id, self.pixels, self.label


@dataclass
class Record:
    """All outcomes of one model under one attack: JSON lines, the circumstances first, then one a sample.

    Args:
        path: the file; None keeps it in memory only.
        circumstances: what the outcomes depend on.
        earlier: of the seconds, those that an earlier start took.
    """

    path: Path | None
    circumstances: dict[str, Any]
    outcomes: dict[tuple[str, str, int], Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    earlier: float = 0.0
    flags: Counter[str] = field(default_factory=Counter)
    batch_sizes: set[int] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path, circumstances: dict[str, Any]) -> Record:
        """The record in this file, empty where there is none.

        Raises:
            InputError: a file that is not such a record.
        """
        record = cls(path, circumstances)
        if not path.exists():
            return record
        try:
            head, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            outcomes = [Outcome(**row) for row in rows]
            record.seconds = record.earlier = float(head["seconds"])
            record.flags = Counter(head["flags"])
            record.batch_sizes = set(head["batch_sizes"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no record of outcomes ({error}); remove it to compute them again.") from error
        record.outcomes = {outcome.key: outcome for outcome in outcomes}
        return record

    def add(self, outcomes: Iterable[Outcome], seconds: float, flags: Counter[str], batch_size: int) -> None:
        """Take a batch in; the file is replaced as a whole, so that a kill at any moment loses one batch at most."""
        self.outcomes.update((outcome.key, outcome) for outcome in outcomes)
        self.seconds += seconds
        self.flags += flags
        self.batch_sizes.add(batch_size)
        if self.path is not None:
            head = {
                "circumstances": self.circumstances,
                "seconds": round(self.seconds, 3),
                "flags": dict(self.flags),
                "batch_sizes": sorted(self.batch_sizes),
            }
            rows = (json.dumps(row) for row in (head, *map(asdict, self.outcomes.values())))
            write_atomic(self.path, "\n".join(rows) + "\n")


class Store:
    """A folder of records; the file's name is the attack and a hash of the circumstances.

    Args:
        folder: None keeps everything in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

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
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); remove it to compute it again.") from error

    def save(self, circumstances: dict[str, Any], value: Any) -> None:
        """Keep a JSON value under these circumstances."""
        if self.folder is not None:
            write_atomic(self._path(circumstances, "json"), json.dumps(value, indent=1) + "\n")

    def _path(self, circumstances: dict[str, Any], suffix: str) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{circumstances['attack']}-{digest}.{suffix}"
