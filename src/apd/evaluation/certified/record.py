"""Votes under noise, kept image by image so that an interrupted certification is continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.evaluation.certified.smoothing import Votes
from apd.evaluation.store import Key, digest
from apd.util.files import append_lines, parse_json, read_bounded


@dataclass
class VoteRecord:
    """The votes of one classifier under one noise, in a file of JSON lines that grows.

    Args:
        path: None keeps them in memory only.
        about: the circumstances, in the first line.
        known: by image.
        begun: whether the file has its first line.
    """

    path: Path | None
    about: Mapping[str, str]
    known: dict[Key, Votes] = field(default_factory=dict)
    begun: bool = False

    @classmethod
    def load(cls, folder: Path | None, about: Mapping[str, str]) -> VoteRecord:
        """Read what is known under these circumstances; a last line that a kill left unfinished does not count.

        Raises:
            InputError: a damaged file.
        """
        if folder is None:
            return cls(None, about)
        path = folder / f"votes-{digest(about)}.jsonl"
        record = cls(path, about)
        if path.exists():
            lines = read_bounded(path, _WAY_OUT, _LARGEST).splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            record.begun = bool(whole)
            try:
                rows = [parse_json(line, path, _WAY_OUT) for line in whole]
                if rows and rows[0] != {"about": dict(about)}:
                    raise ValueError("its first line is of other circumstances")
                for row in rows[1:]:
                    key = (str(row["id"]), str(row["pixels"]), int(row["label"]))
                    record.known[key] = _votes(row, key[2], about)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is not a record of votes ({error}); {_WAY_OUT}.") from error
        return record

    def add(self, key: Key, found: Votes) -> None:
        """Keep the votes on one image."""
        self.known[key] = found
        if self.path is None:
            return
        rows: list[dict[str, Any]] = [] if self.begun else [{"about": dict(self.about)}]
        rows.append({**dict(zip(("id", "pixels", "label"), key, strict=True)), **asdict(found)})
        append_lines(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.begun = True


def _votes(row: Mapping[str, Any], label: int, about: Mapping[str, str]) -> Votes:
    """The votes of a line: one count per class, and as many in all as there were draws."""
    found = Votes(tuple(map(int, row["first"])), tuple(map(int, row["counts"])))
    fits = len(found.first) == len(found.counts) > label >= 0 and min(*found.first, *found.counts) >= 0
    if not fits or (sum(found.first), sum(found.counts)) != (int(about["n0"]), int(about["n"])):
        raise ValueError(f"the votes on {row['id']} are not {about['n0']} and {about['n']} draws over the classes")
    return found


_WAY_OUT = "remove it to certify again"
_LARGEST = 2**30
"""Bytes of a record."""
