"""What can be written in a suite file, and how it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from apd.attacks.threat import parse_eps
from apd.bench.blocks import ELSEWHERE, Block, DataEntry, Final, SomeNames
from apd.bench.protocols import PROTOCOLS
from apd.data.load import BUILT_IN, DATA
from apd.data.settings import REST, UNLABELLED, DataSettings, Shots
from apd.data.sources.standard import STANDARD, find_name
from apd.errors import InputError, check_known, nearest
from apd.evaluation import parse_settings
from apd.evaluation.settings import refuse_teacher
from apd.models.sources import is_weights_file, split_tower
from apd.runs.config import MAIN_SETTING, RunConfig, run_setting_names, validate
from apd.settings.explain import explain, setting_names, source_of
from apd.settings.layers import leaves, merged
from apd.util.files import user_path
from apd.util.plugins import is_spec
from apd.util.section import Section
from apd.util.text import short
from apd.util.yaml_files import read_yaml

_TAKEN = r"test|val|base|new|.*[ -]final"
"""Names that `apd.bench.protocols.EvalSpec` gives to a part of a data set, or to a part in the second stage."""
MOST_RUNS, MOST_EVALUATIONS, MOST_PAIRS = 100_000, 1_000_000, 2_000
"""What the blocks of a suite may ask for; the settings of each pair are checked before anything runs."""


class Suite(Section):
    """Data sets, methods, and blocks that combine them."""

    name: str = Field(description="short, for titles")
    root: str | None = Field(None, description="folder of relative model and data paths, as seen from this file")
    model: str = Field("glyphs", description="built-in name, hub id or folder of a CLIP model")
    data: dict[str, DataEntry]
    methods: dict[str, dict[str, Any] | None] = Field(
        description="label: null for zero-shot CLIP, a name, or a mapping as in a run's section method; "
        "`train` in it changes training for this row alone (an ablation), `data` which unlabelled images it learns from"
    )
    train: dict[str, Any] = Field({}, description="settings of the section train, for all data sets and methods")
    prompts: dict[str, Any] = Field({}, description="settings of the section method.prompts, for all methods")
    attacks: SomeNames = ("apgd-ce", "apgd-dlr")
    limit: int | None = Field(None, ge=1, description="test images under attack; null: all")
    split: Literal["test", "val"] = Field("test", description="val to choose settings by")
    against: str | None = Field(None, description="the method that all are compared with; null: the best of each table")
    blocks: tuple[Block, ...] = Field(min_length=1)
    final: Final | None = None
    _file: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _named_methods(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("methods"), dict):
            methods = {k: {"name": v} if isinstance(v, str) else v for k, v in values["methods"].items()}
            return {**values, "methods": methods}
        return values

    @model_validator(mode="after")
    def _names_are_known(self) -> Suite:
        self._check_count()
        for name, entry in self.data.items():
            if re.fullmatch(_TAKEN, name):
                raise InputError(
                    f"a data set cannot be called {name!r}, as a part of one is in the results; give it another name."
                )
            with in_row(f"data.{name}"):
                parse_eps(entry.eps, entry.norm)
        for number, block in enumerate(self.blocks):
            with in_row(f"blocks.{number}"):
                self._check_block(block)
        with in_row("attacks"):
            self._check_attacks(
                self.attacks, [name for block in self.blocks if not block.attacks for name in block.data]
            )
        if self.against is not None:
            with in_row("against"):
                check_known("method", [self.against], self.methods)
        if self.final:
            with in_row("final"):
                self._check_final(self.final)
        return self

    def _check_block(self, block: Block) -> None:
        check_known("protocol", [block.protocol], PROTOCOLS)
        check_known("data set", [*block.data, *block.to], self.data)
        check_known("method", block.methods, self.methods)
        PROTOCOLS[block.protocol].check(block)
        self._check_models(block)
        self._check_unlabelled(block)
        if block.attacks:
            self._check_attacks(block.attacks, block.data)
        for corruption in block.corruptions:
            parse_settings({"corruption": f"{corruption}:{block.severity}"})
        for eps in block.eps:
            for name in block.data:
                parse_eps(eps, self.data[name].norm)

    def _check_final(self, final: Final) -> None:
        check_known("protocol", final.protocols, PROTOCOLS)
        if not {block.protocol for block in self.blocks}.intersection(final.protocols):
            raise InputError(
                f"no block has a protocol of final.protocols ({', '.join(final.protocols)}); name one that a block has."
            )
        second = [name for b in self.blocks if b.protocol in final.protocols for name in b.data]
        self._check_attacks(final.attacks, second)

    def _check_attacks(self, attacks: Iterable[str], data: Iterable[str]) -> None:
        """Refuse attacks that nothing knows or that a bench cannot make, or that have no form for the norm of a data set."""
        attacks = tuple(attacks)
        refuse_teacher(attacks)
        for norm in dict.fromkeys(self.data[name].norm for name in data):
            parse_settings({"attacks": attacks, "norm": norm})

    def _check_count(self) -> None:
        """Count before anything is combined: a short file can ask for more than any machine holds."""
        sizes = [
            [len(b.data), len(b.methods), len(b.seeds), len(b.shots or (0,)), len(b.unlabelled or (0,))]
            for b in self.blocks
        ]
        runs = sum(map(math.prod, sizes))
        views = [max(1, len(b.to)) * max(1, len(b.eps)) * max(1, len(b.corruptions)) for b in self.blocks]
        evaluations = sum(math.prod(size) * view for size, view in zip(sizes, views, strict=True))
        pairs = sum(len(b.data) * len(b.methods) for b in self.blocks) + len(self.methods)
        counts = (
            (runs, "runs", MOST_RUNS),
            (evaluations, "evaluations", MOST_EVALUATIONS),
            (pairs, "settings of a method on a data set", MOST_PAIRS),
        )
        for count, what, most in counts:
            if count > most:
                raise InputError(
                    f"the blocks ask for {count:,} {what}; a suite may have {most:,}: divide it into several."
                )

    def _check_models(self, block: Block) -> None:
        """Refuse data sets of several CLIP models where the prompts of one are evaluated on the other."""
        for home in block.data:
            for to in block.to:
                if self.model_of(to) != self.model_of(home):
                    raise InputError(
                        f"prompts trained on {home!r} for {self.model_of(home)} cannot be evaluated on {to!r} of "
                        f"{self.model_of(to)}; take it out of 'to'."
                    )

    def _check_unlabelled(self, block: Block) -> None:
        """Refuse no labels at all for every method, and two sources of unlabelled images for one."""
        if block.shots and 0 in block.shots:
            raise InputError(
                "a block cannot have shots: 0, as not every method learns without labels; write "
                "data: {shots: 0, unlabelled: rest} in the row of a method that does."
            )
        for method in block.methods if block.unlabelled is not None else ():
            if self.extra_data(method):
                raise InputError(
                    f"methods.{method} has data of its own, in a block with 'unlabelled'; take one of them away."
                )

    def in_file(self) -> AbstractContextManager[None]:
        """Put the suite's file before the messages of errors in the block."""
        return in_row(self._file)

    def model_of(self, data: str) -> str:
        """Name the CLIP model of runs that train on a data set, as the suite writes it."""
        return self.data[data].model or self.model

    def run_config(
        self, data: str | None, method: str, seed: int = 0, shots: Shots | None = None, new_classes: bool = False
    ) -> RunConfig:
        """Combine the settings of a run, without the data set's own section and with sources as they are written.

        Args:
            data: name of the data set; None: only what the method's own row says.
            method: label of a method that is trained.
            seed: the run's.
            shots: labelled images per class; None: the data set's.
            new_classes: whether the protocol evaluates classes that were not trained.

        Raises:
            InputError: a setting that nothing knows or that does not fit, with the row of the suite that holds it.
        """
        rows = self._rows(data, method)
        for row, sections in rows.items():
            for name, hint in ELSEWHERE["train"].items():
                if name in sections.get("train", {}):
                    raise InputError(_at(row, f"train.{name} has no effect in a suite: {hint}."))
        eps = {} if data is None else {"eps": self.data[data].eps, "norm": self.data[data].norm}
        if shots is None and data is not None:
            shots = self.data[data].shots
        # Which data set a row's own limit is for is not known where it is read alone.
        whole = {"unlabelled": REST} if data is None else {name: getattr(self.data[data], name) for name in UNLABELLED}
        drawn, extra = {} if shots is None else {"shots": shots}, self.extra_data(method)
        images = {"source": str(data), **drawn, **(whole if extra.get("unlabelled", REST) else {}), **extra}
        raw = merged({"data": images, "train": eps, "method": {}}, *rows.values(), {"train": {"seed": seed}})
        prompts = raw["method"].get("prompts", {})
        if new_classes and isinstance(prompts, Mapping) and prompts.get("class_specific") is None:
            raw = merged(raw, {"method": {"prompts": {"class_specific": False}}})
        try:
            return validate(raw)
        except InputError as error:
            raise InputError(_at(_row_of(error, rows), str(error))) from error

    def section(self, data: str, *, shots: int | Literal["all"] | None = None, seed: int | None = None) -> DataSettings:
        """Make the section ``data`` of runs on a data set, for this machine.

        Raises:
            InputError: see `resolve`.
        """
        entry = self.data[data]
        own = {name: getattr(entry, name) for name in DataSettings.model_fields}
        return DataSettings(
            **{
                **own,
                "source": self.resolve(entry.source),
                "shots": entry.shots if shots is None else shots,
                "seed": seed,
            }
            | self.located(own)
        )

    def located(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """Find the unlabelled images of a section ``data`` on this machine; empty where it names none.

        Raises:
            InputError: see `resolve`.
        """
        source = section.get("unlabelled")
        return {} if source is None else {"unlabelled": self.resolve(source)}

    def extra_data(self, method: str) -> dict[str, Any]:
        """Settings of the section data that a method's row has for itself: its unlabelled images, and ``shots: 0``."""
        extra = (self.methods[method] or {}).get("data", {})
        row = f"methods.{method}"
        if not isinstance(extra, Mapping):
            raise InputError(f"{row}: data must hold settings such as unlabelled, got {short(extra)}.")
        for name, value in extra.items():
            if name not in (*UNLABELLED, "shots") or (name == "shots" and value != 0):
                raise InputError(
                    f"{row}: data.{name}={short(value)} is for all methods of a data set; a method of its own has "
                    f"{', '.join(UNLABELLED)} and shots: 0."
                )
        if extra.get("shots") == 0 and self.split == "val":
            raise InputError(
                f"{row}: with shots: 0 the labelled validation images would be among the unlabelled ones; leave out split: val."
            )
        return dict(extra)

    def _rows(self, data: str | None, method: str) -> dict[str, dict[str, Any]]:
        """The layers of a run's settings, the later over the earlier: row of the suite, to its sections."""
        section = dict(self.methods[method] or {})
        train = section.pop("train", {})
        section.pop("data", None)
        if not isinstance(train, Mapping):
            raise InputError(f"methods.{method}: train must hold settings such as epochs, got {short(train)}.")
        own = {f"methods.{method}": {"method": section, "train": train}}
        if data is None:
            return own
        common = {"train": self.train, "method": {"prompts": self.prompts}}
        return {"": common, f"data.{data}": {"train": self.data[data].train}, **own}

    def check_settings(self) -> None:
        """Check all settings that the blocks combine, without looking at any model or data.

        Raises:
            InputError: with the row of the suite.
        """
        pairs: dict[tuple[str | None, str], None] = {}
        for block in self.blocks:
            pairs |= dict.fromkeys((data, method) for data in block.data for method in block.methods)
        used = {method for _, method in pairs}
        pairs |= dict.fromkeys((None, method) for method in self.methods if method not in used)
        for data, method in pairs:
            if self.methods[method] is not None:
                self.run_config(data, method)

    def resolve(self, source: str, what: Literal["data", "model"] = "data") -> str:
        """Find a source on this machine: a path starts at the root, a name stays a name.

        A path has a slash, or is a word that names no data; a model's may be a hub id unless it starts like a path or with
        a folder below the root.

        Raises:
            InputError: a path to nothing.
        """
        if source.startswith("hf:"):
            return source
        tower = split_tower(source) if what == "model" else None
        if tower:
            return f"{self.resolve(tower[0], what)}+{self._path(str(tower[1]), what)}"
        name, at, below = source.partition("@")
        if at and find_name(name):  # a standard data set below a folder
            return f"{name}@{self._path(below, what)}"
        like_a_path = source.startswith((".", "/", "~")) or (self._base / source.split("/")[0]).exists()
        is_path = "/" in source and (like_a_path or what == "data")
        # Never what happens to lie in the working directory under that word.
        is_path = is_path or (is_weights_file(source) if what == "model" else not _is_name(source))
        return str(self._path(source, what)) if is_path else source

    @property
    def _base(self) -> Path:
        return Path(self.root or ".").resolve()

    def _path(self, text: str, what: str) -> Path:
        path = (self._base / user_path(text)).resolve()
        if not path.exists():
            origin = "the root" if self.root else "the working directory, as there is no root"
            hint = f" {nearest(text, [*BUILT_IN, *STANDARD])}" if what == "data" and "/" not in text else ""
            raise InputError(
                f"no {what} {text!r}: there is nothing at {path}. Paths start at {origin}; --root sets it.{hint}"
            )
        return path


def load_suite(file: str | Path, *, root: str | Path | None = None, against: str | None = None) -> Suite:
    """Read a suite from a YAML file.

    Args:
        file: the suite.
        root: folder of its relative paths, instead of the file's own ``root``.
        against: the method that all are compared with, instead of the file's own.

    Raises:
        InputError: a missing or damaged file, an unknown name, a value out of range, settings that no method or training
            knows, a root that is not there; in one line with the file and, as far as there is one, the row.

    Example:
        >>> from apd.bench import load_suite
        >>> load_suite("suites/quick.yaml").model  # doctest: +SKIP
        'glyphs'
    """
    path = user_path(file)
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{file} must hold a suite: data, methods and blocks.")
    try:
        suite = Suite.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        row = ".".join(map(str, error.errors()[0]["loc"][:2])) if _is_complaint(error) else ""
        raise InputError(f"{file}: {_at(row, explain(error, setting_names(Suite)))}") from error
    suite._file = str(file)
    with suite.in_file():
        suite.check_settings()
    if against is not None:
        check_known("method", [against], suite.methods)
    if root is not None:
        root = user_path(root)
    elif suite.root is not None:
        root = path.parent / user_path(suite.root)
    if root is not None and not Path(root).is_dir():
        raise InputError(f"{file}: there is no folder {root} with its models and data; say where it is with --root.")
    place = None if root is None else str(Path(root).resolve())
    return suite.model_copy(update={"root": place, "against": against or suite.against})


@contextmanager
def in_row(row: str) -> Iterator[None]:
    """Put a row of the suite before the messages of errors in the block."""
    try:
        yield
    except InputError as error:
        raise InputError(_at(row, str(error))) from (error.__cause__ or error)


def _is_complaint(error: ValidationError) -> bool:
    """Whether the first of the errors is a sentence of ours, which need not name the setting in full."""
    return "error" in (error.errors(include_url=False)[0].get("ctx") or {})


def _is_name(source: str) -> bool:
    """Whether a word names data that are found without a path."""
    return source in (REST, *BUILT_IN) or find_name(source) is not None or is_spec(source) or DATA.knows(source)


def _at(row: str, message: str) -> str:
    """Put the row before a message, in which a method's settings are named without ``method.``."""
    if row.startswith("methods."):
        message = re.sub(r"\bmethod\.(?=\w)", "", message)
    return f"{row}: {message}" if row else message


def _row_of(error: InputError, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The last row that holds the setting which an error is about; the last of all if none does."""
    places: dict[str, str] = {}
    for row in reversed(list(rows)):
        for name in leaves(rows[row]):
            places.setdefault(name, row)
    cause, last = error.__cause__, list(rows)[-1]
    if not isinstance(cause, ValidationError):
        return last
    found = source_of(cause, run_setting_names(rows[last]["method"]), places, MAIN_SETTING)
    return last if found is None else found
