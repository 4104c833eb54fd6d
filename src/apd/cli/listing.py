"""`apd list`."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import textwrap
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apd.cli.common import AsJson, say
from apd.errors import InputError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from apd.util.plugins import Registry

KINDS = ("models", "methods", "attacks", "data")
SETTINGS = "settings"
"""Listed on its own only: there are many."""


def listing(
    kind: Annotated[
        str | None, typer.Argument(help="models, methods, attacks, data or settings. (default: the first four)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models, methods, attacks or data, or the settings of a training with their defaults.

    For methods, --json adds sources, settings and published presets.

    Examples:
      apd list
      apd list methods
      apd list methods --json
      apd list settings
    """
    if kind is not None and kind not in (*KINDS, SETTINGS):
        raise InputError(f"apd list has no {kind!r}. {nearest(kind, (*KINDS, SETTINGS))}")
    tables = {name: _rows(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        named: dict[str, Any] = {
            name: [{"name": key, "description": text, **_details(name, key)} for key, text in rows]
            for name, rows in tables.items()
        }
        print(json.dumps(named[kind] if kind else named, ensure_ascii=False, indent=2))
        return
    for name, rows in tables.items():
        width = max(len(key) for key, _ in rows)
        print(f"{name}:")
        for key, text in rows:
            package = _package(name, key)
            print(_entry(f"  {key:<{width}}  ", text + (f" (package {package})" if package else "")))
    if kind == SETTINGS:
        say("Settings of methods other than the default: apd list methods --json")
    setting = " --set NAME=VALUE" if kind == SETTINGS else ""
    say(f"Next: apd train DATA --model MODEL --method METHOD{setting}")


def _entry(key: str, text: str) -> str:
    """A line; on a terminal as many as it takes, with the text in a column of its own."""
    if not sys.stdout.isatty():
        return key + text
    columns = max(shutil.get_terminal_size().columns, len(key) + 20)
    return textwrap.fill(text, columns, initial_indent=key, subsequent_indent=" " * len(key))


def _rows(kind: str) -> list[tuple[str, str]]:
    if kind == SETTINGS:
        return [(name, _meaning(about)) for name, about in _training().items()]
    found, problems = _registry(kind).listing()
    for problem in problems:
        say(problem)
    if kind == "methods":
        return [(name, method.summary) for name, method in found.items()]
    others = [(name, _summary(entry)) for name, entry in found.items() if name not in _registry(kind)]
    return [*_built_in(kind), *others]


def _meaning(about: dict[str, Any]) -> str:
    """What a setting does, and its default as YAML has it."""
    import yaml

    if "default" not in about:
        return f"{about['description']} (no default)"
    default = yaml.safe_dump(about["default"], default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"{about['description']} (default: {default})"


def _built_in(kind: str) -> list[tuple[str, str]]:
    if kind == "models":
        from apd.models import list_models

        return list_models()
    if kind == "attacks":
        from apd.attacks import EVALUATION

        return list(EVALUATION.items())
    from apd.data import list_data

    return list_data()


def _registry(kind: str) -> Registry[Any]:
    if kind == "models":
        from apd.models import MODELS

        return MODELS
    if kind == "methods":
        from apd.methods import METHODS

        return METHODS
    if kind == "attacks":
        from apd.attacks import EVALUATION_ATTACKS

        return EVALUATION_ATTACKS
    from apd.data.load import DATA

    return DATA


def _summary(entry: object) -> str:
    """The first line of an object's docstring."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _package(kind: str, name: str) -> str | None:
    """The other package that an entry comes from."""
    return _registry(kind).package(name)


def _details(kind: str, name: str) -> dict[str, Any]:
    """What JSON says besides name and description: much about a method, the default of a setting."""
    if kind == SETTINGS:
        return _training()[name]
    if kind != "methods":
        return {}
    from apd.methods import find_method
    from apd.runs.config import validate

    method, settings = find_method(name), validate({"data": "DATA", "method": name}).method.settings
    return {
        "source": method.source,
        "trains": str(settings.prompts),
        "adversarial": method.adversarial,
        "module": method.__module__,
        "settings": _settings(settings, "method."),
        "published": dict(method.Settings.published),
    }


@cache
def _training() -> dict[str, dict[str, Any]]:
    """The settings of a training by the default method, without data."""
    from apd.runs.config import validate

    config = validate({"data": "DATA"})
    method = type(config.method).model_fields["name"]
    return {
        **_settings(config, skip=("method",)),
        "method.name": {"default": config.method.name, "description": method.description},
        **_settings(config.method.settings, "method."),
    }


def _settings(section: BaseModel, prefix: str = "", skip: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Dotted names to default, if there is one, and description."""
    from pydantic import BaseModel

    found: dict[str, dict[str, Any]] = {}
    for name, field in type(section).model_fields.items():
        if name in skip:
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found |= _settings(value, f"{prefix}{name}.")
        else:
            default = {} if field.is_required() else {"default": value}
            found[f"{prefix}{name}"] = {**default, "description": field.description}
    return found
