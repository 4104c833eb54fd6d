"""`apd list`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from apd.cli.common import say
from apd.errors import InputError, nearest

KINDS = ("models", "methods", "attacks", "data")


def listing(
    kind: Annotated[str | None, typer.Argument(help="models, methods, attacks or data; all without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, alone on standard output.")] = False,
) -> None:
    """List models, methods, attacks or data.

    \b
    Examples:
      apd list
      apd list methods
      apd list attacks --json
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"apd list knows no {kind!r}. {nearest(kind, KINDS)}")
    tables = {name: _rows(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        named: dict[str, Any] = {
            name: [{"name": key, "description": text} for key, text in rows] for name, rows in tables.items()
        }
        print(json.dumps(named[kind] if kind else named, ensure_ascii=False, indent=2))
        return
    for name, rows in tables.items():
        width = max(len(key) for key, _ in rows)
        print(f"{name}:")
        for key, text in rows:
            print(f"  {key:<{width}}  {text}")
    say("Next: apd train DATA --model MODEL --method METHOD")


def _rows(kind: str) -> list[tuple[str, str]]:
    if kind == "models":
        from apd.clip import list_models

        return list_models()
    if kind == "methods":
        from apd.methods import METHODS

        return [(name, method.summary) for name, method in METHODS.items()]
    if kind == "attacks":
        from apd.attacks import EVALUATION

        return list(EVALUATION.items())
    from apd.data import list_data

    return list_data()
