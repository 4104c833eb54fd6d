"""`apd schema`."""

from __future__ import annotations

from importlib.resources import files


def schema() -> None:
    """Print the JSON schema of a result, of apd evaluate --json and of RUN/results/summary-*.json.

    Examples:
      apd schema > result.schema.json
    """
    print((files("apd") / "assets" / "schema" / "result.json").read_text(encoding="utf-8"), end="")
