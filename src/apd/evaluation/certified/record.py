"""Votes under noise, kept image by image so that an interrupted certification is continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.evaluation.certified.smoothing import Votes
from apd.evaluation.store import Key
from apd.util.files import append_lines, parse_json


@dataclass
class VoteRecord:
    """The votes of one classifier under one noise, in a file of JSON lines that grows.

    Args:
        path: None keeps them in memory only.
        about: the circumstances, in the first line.
        known: by image.
    """

    path: Path | None
    about: Mapping[str, str]
    known: dict[Key, Votes] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | None, about: Mapping[str, str]) -> VoteRecord:
        """Read what is known under these circumstances; a last line that a kill left unfinished does not count.

        Raises:
            InputError: a damaged file.
        """
        if folder is None:
            return cls(None, about)
        digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:16]
        record = cls(folder / f"votes-{digest}.jsonl", about)
        if record.path is not None and record.path.exists():
            whole = [line for line in record.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            try:
                for row in (parse_json(line, record.path, "remove it to certify again") for line in whole[1:]):
                    key = (str(row["id"]), str(row["pixels"]), int(row["label"]))
                    record.known[key] = Votes(tuple(map(int, row["first"])), tuple(map(int, row["counts"])))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{record.path} is not a record of votes ({error}); remove it to certify again."
                ) from error
        return record

    def add(self, key: Key, found: Votes) -> None:
        """Keep the votes on one image."""
        rows: list[dict[str, Any]] = []
        if self.path is not None and not self.path.exists():
            rows.append({"about": dict(self.about)})
        rows.append({**dict(zip(("id", "pixels", "label"), key, strict=True)), **asdict(found)})
        self.known[key] = found
        if self.path is not None:
            append_lines(self.path, "".join(json.dumps(row) + "\n" for row in rows))
