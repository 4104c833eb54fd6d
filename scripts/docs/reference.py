"""The pages of the documentation that are made from the code: every command, every setting."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import apd
from apd.util.section import Section

SKIPPED = {"apd.__main__"}


def commands_page() -> str:
    """Every command with its help, arguments and options, as the command line has them."""
    from apd.cli import app

    group = typer.main.get_command(app)
    parts = [
        "# Commands",
        "Made from the code of this version. `apd COMMAND --help` prints the same. `--debug`, before or after a command, "
        "shows the traceback of an error.",
        "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 not reliable (`--strict`), 130 stopped with Ctrl-C.",
    ]
    return "\n\n".join([*parts, *(_command(name, command) for name, command in group.commands.items())]) + "\n"


def _command(name: str, command: Any) -> str:
    text, _, examples = re.sub(r"\x08|\\b", "", command.help or "").partition("Examples:")
    shown = "\n".join(line.strip() for line in examples.strip().splitlines())
    arguments = [_argument(param) for param in command.params if param.param_type_name == "argument"]
    rows = [_parameter(param) for param in command.params if param.name != "help"]
    parts = [f"## apd {name}", " ".join(text.split()), f"    {' '.join(['apd', name, *arguments, '[OPTIONS]'])}"]
    if rows:
        parts.append(_table(("", "what it does", "default"), rows))
    if shown:
        parts.append(f"Examples:\n\n```sh\n{shown}\n```")
    return "\n\n".join(parts)


def _argument(param: Any) -> str:
    name = param.metavar or f"{param.name.upper()}{'' if param.nargs == 1 else ' ...'}"
    return name if param.required else f"[{name}]"


def _parameter(param: Any) -> tuple[str, str, str]:
    """Name, help and default of one argument or option."""
    if param.param_type_name == "argument":
        name = f"`{_argument(param)}`"
    else:
        value = "" if param.is_flag else f" {param.metavar or param.name.upper().rstrip('_')}"
        name = ", ".join(f"`{flag}{value}`" for flag in [*param.opts, *param.secondary_opts])
    # Many options say in their help what is taken without them, because None stands for it.
    words, found, default = (param.help or "").partition("(default: ")
    if not found and param.default not in (None, False, ()) and not callable(param.default):
        default = str(getattr(param.default, "value", param.default))
    return name, words.strip(), default.removesuffix(")")


def settings_page() -> str:
    """Every setting of runs, methods, evaluations and suites, and of all other sections, with default and meaning."""
    from apd.bench.blocks import Block, DataEntry, Final
    from apd.bench.suite import Suite
    from apd.data.settings import DataSettings
    from apd.evaluation.settings import EvaluationSettings
    from apd.methods import METHODS
    from apd.methods.base import MethodSettings
    from apd.models.prompts import PromptSpec
    from apd.runs.config import RunConfig
    from apd.settings.train import TrainSettings

    parts = [
        "# Settings",
        "Made from the code of this version. A setting has the same dotted name in a YAML file (`apd train --config`), on the "
        "command line (`--set NAME=VALUE`) and in Python. Each run folder holds all of them in its `config.yaml`.",
        "```yaml\nmodel: openai/clip-vit-base-patch32\ndata: {source: photos, shots: 16}\n"
        "method: {name: apd, teacher: frozen}\ntrain:\n  eps: 1/255\n  optimizer: {lr: 0.003}\n```",
        "## Model and data",
        _settings(RunConfig, skip=("data", "method", "train")),
        _settings(DataSettings, "data."),
        "## Training",
        _settings(TrainSettings, "train."),
        "## All methods",
        "`method.name` chooses one of the [methods](methods.md). Its defaults may differ from these, as its section says.",
        _settings(MethodSettings, "method."),
    ]
    parts += [f"## Method {name}\n\n{_method(method)}" for name, method in METHODS.items()]
    parts += ["## Evaluation", "Arguments of `apd.evaluate` and `apd.evaluate_run`; `apd evaluate` has flags for them."]
    parts += [_settings(EvaluationSettings)]
    parts += ["## Suites", "What a [suite file](bench.md) of `apd bench` may say.", _settings(Suite)]
    parts += ["An entry of `data` also takes the settings of [the section `data`](#model-and-data), and:"]
    parts += [_settings(DataEntry, "data.*.", skip=tuple(DataSettings.model_fields))]
    parts += ["An entry of `blocks`:", _settings(Block, "blocks.*."), "`final`:", _settings(Final, "final.")]
    shown = {RunConfig, TrainSettings, EvaluationSettings, Suite, DataEntry, Block, Final, PromptSpec, MethodSettings}
    others = [each for each in sections() if not _is_shown(each, shown)]
    if others:
        parts.append("## Other settings")
        parts += [f"### {each.__name__}\n\n{_first(each)}\n\n{_settings(each)}" for each in others]
    return "\n\n".join(parts) + "\n"


def sections() -> list[type[Section]]:
    """Every section of settings that the package defines and that has settings, from all of its modules."""
    for module in pkgutil.walk_packages(apd.__path__, "apd."):
        if module.name not in SKIPPED:
            import_module(module.name)
    found = [Section]
    for each in found:
        found += [below for below in each.__subclasses__() if below not in found]
    own = [each for each in found if each.__module__.startswith("apd.") and each.model_fields]
    return sorted(own, key=lambda each: (each.__module__, each.__name__))


def _is_shown(section: type[Section], shown: set[type[Section]]) -> bool:
    """Whether a section is one of those shown, a part of one, the base of one, or a method's."""
    from apd.methods.base import MethodSettings
    from apd.runs.config import MethodConfig

    parts = {inner for each in shown for inner in _inner(each)}
    return (
        section in parts
        or issubclass(section, MethodSettings | MethodConfig)
        or any(issubclass(each, section) for each in parts)
    )


def _inner(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for field in section.model_fields.values():
        below = _section_of(field.annotation)
        if below is not None:
            yield from _inner(below)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _method(method: Any) -> str:
    """A method's summary, its own settings, and where its prompts differ from the defaults."""
    from apd.methods.base import MethodSettings

    settings = method.Settings
    own = {name for name in settings.model_fields if name not in MethodSettings.model_fields}
    text = f"{_sentence(method.summary)} Source: {method.source}."
    differing = {f"method.prompts.{name}": value for name, value in {**settings.defaults, **settings.fixed}.items()}
    if differing:
        text += " Its prompts: " + ", ".join(f"`{name}={_value(value)}`" for name, value in differing.items()) + "."
    if not own:
        return f"{text} It has no further settings."
    return f"{text}\n\n{_settings(settings, 'method.', skip=tuple(MethodSettings.model_fields))}"


def _settings(section: type[BaseModel], prefix: str = "", skip: tuple[str, ...] = ()) -> str:
    rows = list(_rows(section, prefix, skip))
    return _table(("setting", "values", "default", "meaning"), rows)


def _rows(section: type[BaseModel], prefix: str, skip: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    defaults = _defaults(section)
    for name, field in section.model_fields.items():
        if name in skip:
            continue
        below = _section_of(field.annotation)
        if below is not None:
            yield from _rows(below, f"{prefix}{name}.", ())
        else:
            default = "" if field.is_required() else f"`{_value(defaults.get(name, field.default))}`"
            yield f"`{prefix}{name}`", _kind(field), default, field.description or ""


def _defaults(section: type[BaseModel]) -> Mapping[str, Any]:
    """What a section holds if nothing is set, presets included; nothing where something must be set."""
    if any(field.is_required() for field in section.model_fields.values()):
        return {}
    made = section()
    return {name: getattr(made, name) for name in section.model_fields}


def _kind(field: FieldInfo) -> str:
    """The values that a setting takes, in words, with its limits."""
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(limit, name, None) is not None and abs(getattr(limit, name)) < 1e9
    ]
    return ", ".join([_type(field.annotation), *limits])


_NAMES = {str: "text", int: "whole number", float: "number", bool: "true, false", type(None): "null", Any: "any"}


def _type(annotation: Any) -> str:
    if annotation in _NAMES:
        return _NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        return getattr(annotation, "__name__", str(annotation))
    if origin is tuple or origin is list:
        return "list of " + _type(arguments[0])
    if origin is dict:
        return "mapping"
    if str(origin) == "typing.Literal":
        return ", ".join(f"`{_value(each)}`" for each in arguments)
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    return " or ".join(dict.fromkeys(_type(each) for each in arguments))


def _value(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _first(thing: object) -> str:
    """The first line of a docstring."""
    return _sentence((getattr(thing, "__doc__", None) or "").strip().partition("\n")[0])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; nothing in a cell may end it."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!`)<(?=\w)", "&lt;", " ".join(text.split()).replace("|", "\\|"))


if __name__ == "__main__":
    print(commands_page())
    print(settings_page())
