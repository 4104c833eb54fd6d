"""What a verification has found: one line each, and a verdict over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        about: its name: ``prompts``, ``encoder``, ``config``, ``classifier``, ``results``, ``records``, ``checks``, ``card``,
            ``images`` or ``again``.
        ok: whether it is as it should be.
        message: what was found, on one line.
        result: the file of the evaluation that it is about; None: the whole run.
    """

    about: str
    ok: bool
    message: str
    result: str | None = None


@dataclass(frozen=True)
class Verification:
    """All findings about a run.

    Args:
        run: the folder.
        samples: images per evaluation that were attacked again.
        seed: drew them.
        findings: in the order in which they were looked at.
    """

    run: str
    samples: int
    seed: int
    findings: tuple[Finding, ...]

    @property
    def verified(self) -> bool:
        """Whether everything is as it should be."""
        return all(finding.ok for finding in self.findings)

    @property
    def failed(self) -> Sequence[Finding]:
        """What is not as it should be."""
        return [finding for finding in self.findings if not finding.ok]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"verified": self.verified, **asdict(self)}
