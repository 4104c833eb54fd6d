"""From a suite to jobs: what there is to do, and the name under which its outcome is kept.

A `Job` is one training (or zero-shot CLIP) with every evaluation that any block asks of it. Its id is a hash of all
settings and of the content of model and data, wherever they lie. A `TableRow` is a job as one row of a protocol's table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from apd.bench.blocks import Block, Final
from apd.bench.identity import (
    attacks_identity,
    data_identity,
    digest,
    model_identity,
    training_identity,
    transferred_from,
)
from apd.bench.loaded import dataset, encoder_info
from apd.bench.protocols import PROTOCOLS, EvalSpec
from apd.bench.suite import Suite, in_row
from apd.data.settings import REST, DataSettings, Shots
from apd.errors import InputError, check_known
from apd.evaluation.surroundings import ZERO_SHOT
from apd.runs.config import RunConfig, with_class_contexts
from apd.settings.train import OF_UNLABELLED, TrainSettings
from apd.util.files import parse_json
from apd.util.json_shape import COUNT, TEXT, Each, Table, check_shape
from apd.util.text import short

WAY_OUT = "run the bench again, finished runs are kept"
_SPECS = Table(
    {
        **dict.fromkeys(("name", "split", "data", "eps"), TEXT),
        "attacks": Each(TEXT),
        "limit": (None, COUNT),
        "classes?": TEXT,
        "corruption?": (None, TEXT),
        **dict.fromkeys(("names?", "norm?"), TEXT),
    }
)
_SHAPE = {
    "suite": TEXT,
    "against": (None, TEXT),
    "image_size?": (None, COUNT),
    "entries": Each(
        {
            **dict.fromkeys(("protocol", "data", "method", "job"), TEXT),
            "shots": (TEXT, COUNT),
            "seed": (None, COUNT),
            "views": _SPECS,
            "final": _SPECS,
        }
    ),
}


@dataclass(frozen=True)
class Job:
    """One training and its evaluations.

    Args:
        id: hash of everything that decides the outcome.
        label: for people.
        model: where the CLIP is.
        config: settings of the training; None for zero-shot CLIP.
        data: the data sets it touches by their name in the suite, the one it trains on first.
        device: to compute on.
        split: test or val.
        evals: the evaluations by hash.
    """

    id: str
    label: str
    model: str
    config: RunConfig | None
    data: Mapping[str, DataSettings]
    device: str
    split: Literal["test", "val"]
    evals: Mapping[str, EvalSpec]

    @property
    def home(self) -> DataSettings:
        """The data set it trains on."""
        return next(iter(self.data.values()))

    def joined(self, other: Job) -> Job:
        """Combine two jobs of the same id: one training with the evaluations of both."""
        return replace(self, evals={**self.evals, **other.evals}, data={**self.data, **{**other.data, **self.data}})


@dataclass(frozen=True)
class TableRow:
    """A job as a row of a protocol's table; ``evals`` and ``final`` name its evaluations by hash.

    ``seed`` is None for zero-shot CLIP, which stands for every seed; ``unlabelled`` is None where the block leaves it to the
    method.
    """

    protocol: str
    data: str
    method: str
    shots: Shots
    seed: int | None
    job: str
    evals: Mapping[str, EvalSpec]
    final: Mapping[str, EvalSpec] = field(default_factory=dict)
    unlabelled: int | None = None

    @property
    def table(self) -> tuple[object, ...]:
        """What all rows of one table share."""
        return self.protocol, self.data, self.shots, self.unlabelled, tuple(self.evals.values())

    @property
    def key(self) -> tuple[object, ...]:
        """What no two rows share."""
        return self.table, self.method, self.seed


@dataclass(frozen=True)
class Plan:
    """All rows of all tables, and the jobs behind them; ``image_size`` is the CLIP model's, in pixels, where it is one."""

    suite: str
    rows: tuple[TableRow, ...]
    jobs: Mapping[str, Job] = field(default_factory=dict)
    against: str | None = None
    image_size: int | None = None

    def to_json(self) -> str:
        """Write the rows, without which outcomes mean nothing; jobs, which hold paths of one machine, are left out."""
        rows = [
            {
                _FILE_KEYS.get(key, key): value
                for key, value in _record(row).items()
                if key not in _NEW or value is not None
            }
            for row in self.rows
        ]
        size = {} if self.image_size is None else {"image_size": self.image_size}
        return json.dumps({"suite": self.suite, "against": self.against, **size, "entries": rows}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, file: Path = Path("plan.json")) -> Plan:
        """Read the rows again, without jobs.

        Args:
            text: what `to_json` wrote.
            file: where it was read from, for messages.

        Raises:
            InputError: a damaged text.
        """
        record = parse_json(text, file, WAY_OUT)
        check_shape(record, _SHAPE, file, WAY_OUT)
        odd = next((row["job"] for row in record["entries"] if not re.fullmatch(r"[\w. -]{1,200}", row["job"])), None)
        if odd is not None:  # a part of a path to its outcome
            raise InputError(f"{file} is damaged (a job is called {short(odd, 40)}); {WAY_OUT}.")
        rows = tuple(_row(row) for row in record["entries"])
        return cls(record["suite"], rows, against=record["against"], image_size=record.get("image_size"))

    def compared_with(self, method: str) -> Plan:
        """Compare all methods with another one.

        Raises:
            InputError: a method without a row.
        """
        check_known("method", [method], (row.method for row in self.rows))
        return replace(self, against=method)

    def with_final(self, final: Final, best: Mapping[tuple[object, ...], list[str]], suite: Suite) -> Plan:
        """Add the second stage's evaluations for the ``best`` methods of each table."""
        rows, jobs = [], dict(self.jobs)
        for row in self.rows:
            if row.method in best.get(row.table, []):
                specs = [_final(spec, final) for spec in row.evals.values()]
                extra = {_eval_key(spec, suite): spec for spec in specs}
                row = replace(row, final=extra)
                job = jobs[row.job]
                jobs[job.id] = replace(job, evals={**job.evals, **extra})
            rows.append(row)
        return replace(self, rows=tuple(rows), jobs=jobs)


_NEW = ("unlabelled",)
"""What rows got after plans had been kept: left out where it is None."""
_FILE_KEYS = {"evals": "views"}
"""Names in ``plan.json`` that are not those of `TableRow`."""


def _record(row: TableRow) -> dict[str, Any]:
    specs = {name: {key: spec.record() for key, spec in getattr(row, name).items()} for name in ("evals", "final")}
    return asdict(row) | specs


def _row(record: Mapping[str, Any]) -> TableRow:
    specs = {name: {key: _spec(spec) for key, spec in record[name].items()} for name in ("views", "final")}
    row = {**record, **specs}
    return TableRow(evals=row.pop("views"), **row)


def _spec(record: Mapping[str, Any]) -> EvalSpec:
    return EvalSpec(**{**record, "attacks": tuple(record["attacks"])})


def make_plan(suite: Suite, device: str = "cpu") -> Plan:
    """Plan every run that the suite asks for.

    Args:
        suite: from `load_suite`.
        device: that runs compute on; not part of their identity.

    Raises:
        InputError: a model or data that cannot be read, settings that do not fit.
    """
    with suite.in_file():
        return _plan(suite, device)


def _plan(suite: Suite, device: str) -> Plan:
    rows: dict[tuple[object, ...], TableRow] = {}
    jobs: dict[str, Job] = {}
    labels: dict[str, str] = {}
    for block in suite.blocks:
        for data in block.data:
            for shots in block.shots or (suite.data[data].shots,):
                for images, method in product(block.unlabelled or (None,), block.methods):
                    for seed in _seeds(suite, block, method):
                        job = _job(suite, block, _Cell(data, shots, method, seed, images), device)
                        if labels.setdefault(job.label, job.id) != job.id:  # another training, of the same name so far
                            job = replace(job, label=f"{job.label}, {block.protocol}")
                        row = TableRow(block.protocol, data, method, shots, seed, job.id, job.evals, unlabelled=images)
                        rows.setdefault(row.key, row)
                        jobs[job.id] = jobs[job.id].joined(job) if job.id in jobs else job
    sizes = {encoder_info(job.model).image_size for job in jobs.values()}
    return Plan(suite.name, tuple(rows.values()), jobs, suite.against, sizes.pop() if len(sizes) == 1 else None)


@dataclass(frozen=True)
class _Cell:
    """One combination of a block."""

    data: str
    shots: Shots
    method: str
    seed: int | None
    unlabelled: int | None

    def extra(self, suite: Suite) -> dict[str, Any]:
        """Settings of the section data that this combination has for itself."""
        if self.unlabelled is None:
            return suite.extra_data(self.method)
        source = (suite.data[self.data].unlabelled or REST) if self.unlabelled else None
        return {"unlabelled": source, "unlabelled_limit": self.unlabelled or None}


def _seeds(suite: Suite, block: Block, method: str) -> tuple[int | None, ...]:
    """The seeds of a method's rows; zero-shot CLIP depends on none, but the draw of validation images does."""
    return (None,) if suite.methods[method] is None and suite.split == "test" else block.seeds


def _job(suite: Suite, block: Block, cell: _Cell, device: str) -> Job:
    """One combination of a block as a job."""
    data, shots, method, seed = cell.data, cell.shots, cell.method, cell.seed
    protocol, drawn = PROTOCOLS[block.protocol], seed or 0
    attacks, limit = block.attacks or suite.attacks, block.limit or suite.limit
    eps, norm = suite.data[data].eps, suite.data[data].norm
    template = EvalSpec("test", suite.split, data, eps, attacks, limit, norm=norm, of=suite.split)
    asked = protocol.evals(block, template)
    _check_classes(asked, suite)
    specs: dict[str, EvalSpec] = {}
    for spec in asked:
        twin = specs.setdefault(_eval_key(spec, suite), spec)
        if twin != spec:
            raise InputError(
                f"data.{twin.data} and data.{spec.data} have the same images to a bench (their names, classes and sizes of "
                "files), so that its tables would show one of them: name one."
            )
    others = {spec.data for spec in specs.values()} - {data}
    with in_row("model" if suite.data[data].model is None else f"data.{data}.model"):
        model = suite.resolve(suite.model_of(data), "model")
        decides: dict[str, Any] = {"model": model_identity(model)}
    with in_row(f"data.{data}"):
        sections = {data: suite.section(data, shots=shots, seed=drawn)}
        decides["data"] = data_identity(suite.section(data))
    sections |= {other: suite.section(other, shots="all", seed=drawn) for other in sorted(others)}
    config = None
    if suite.methods[method] is not None:
        extra = cell.extra(suite)
        with in_row(f"methods.{method}"):
            update = {"classes": protocol.train_classes, **extra, **suite.located(extra)}
        section = sections[data].model_copy(update=update)
        if cell.unlabelled:
            _check_enough(section, data)
        run = suite.run_config(data, method, drawn, shots, protocol.new_classes)
        with in_row(f"data.{data}"):
            run = with_class_contexts(run, lambda: dataset(section.labelled()))
        if cell.unlabelled == 0:  # what a curve's row says of them has no effect where it begins
            train = run.train.model_copy(update=dict.fromkeys(OF_UNLABELLED))
            run = run.model_copy(update={"train": train})
        with in_row(f"methods.{method}"):
            _check_unlabelled_settings(run.train, section)
            config = _located(suite, run, model, section, device)
        with in_row(f"data.{data}" if config.data.unlabelled == sections[data].unlabelled else f"methods.{method}"):
            decides |= training_identity(config)
    if seed is not None:
        own = config is not None and config.data.shots == 0
        decides |= {"shots": 0 if own else shots, "seed": seed}
    label = _label(f"{method} on {data}", shots, seed, protocol.train_classes)
    label += f", {cell.unlabelled} unlabelled" if cell.unlabelled is not None and config is not None else ""
    return Job(digest(decides), label, model, config, sections, device, suite.split, specs)


def _check_classes(asked: Sequence[EvalSpec], suite: Suite) -> None:
    """Refuse data sets with too few classes for a base and a new half before anything is trained on them."""
    for name, which in dict.fromkeys((spec.data, spec.classes) for spec in asked if spec.classes != "all"):
        with in_row(f"data.{name}"):
            dataset(suite.section(name)).classes(which)


def _check_unlabelled_settings(train: TrainSettings, data: DataSettings) -> None:
    """Refuse settings about unlabelled images beside labelled ones where either is missing, before anything is trained."""
    for name in OF_UNLABELLED:
        value = getattr(train, name)
        if value is not None and (data.unlabelled is None or data.shots == 0):
            raise InputError(
                f"train.{name}={value} has no effect without both labelled and unlabelled images; remove it."
            )


def _check_enough(section: DataSettings, name: str) -> None:
    """Refuse more unlabelled images than there are: a curve would show them at the wrong number."""
    wanted = section.unlabelled_limit
    if wanted is None:
        return
    found = len(dataset(section.model_copy(update={"unlabelled_limit": None})).unlabelled)
    if found < wanted:
        raise InputError(
            f"data.{name}: {wanted} unlabelled images are asked for, but there are {found}; ask for fewer."
        )


def _located(suite: Suite, config: RunConfig, model: str, data: DataSettings, device: str) -> RunConfig:
    """The settings as this machine runs them: where the CLIPs and the data are, and the device."""
    others = {name: suite.resolve(source, "model") for name, source in config.method.other_models().items()}
    method = config.method.model_copy(update={"settings": config.method.settings.model_copy(update=others)})
    train = config.train.model_copy(update={"device": device})
    return config.model_copy(update={"model": model, "data": data, "method": method, "train": train})


def _label(what: str, shots: Shots, seed: int | None, classes: str) -> str:
    if seed is None:
        return what
    return f"{what}, {shots} shots, seed {seed}" + (f", {classes} classes" if classes != "all" else "")


def _final(spec: EvalSpec, final: Final) -> EvalSpec:
    return replace(
        spec, name=f"{spec.name} final", split=f"{spec.split}-final", attacks=final.attacks, limit=final.limit
    )


def _eval_key(spec: EvalSpec, suite: Suite) -> str:
    with in_row(f"data.{spec.data}"):
        about = spec.record() | {"data": data_identity(suite.section(spec.data)), "of": suite.split}
    with in_row("attacks"):
        for source in filter(None, map(transferred_from, spec.attacks)):
            if suite.resolve(source, "model") != source:
                raise InputError(
                    f"transfer:{source} names a path that counts from where one is: give the whole path "
                    f"({suite.resolve(source, 'model')}), a hub id, or {ZERO_SHOT}."
                )
        about |= attacks_identity(spec.attacks)
    return digest({key: value for key, value in about.items() if key not in ("name", "split")})
