"""From a suite to runs: what there is to do, and under which name it is known.

A `Job` is one training (or the CLIP as it is) with every evaluation that any block wants of it. Its id is a hash of all
settings and of what model and data are, wherever they lie. An `Entry` is a job as one line of one protocol's table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from apd.bench.protocols import PROTOCOLS, View
from apd.bench.suite import Block, Final, Suite
from apd.data import Dataset, load_data
from apd.data.dataset import Shots
from apd.methods import find_method
from apd.models import EncoderInfo, load_clip


@dataclass(frozen=True)
class Source:
    """A data set as a suite takes it.

    Args:
        place: where it is on this machine.
        templates: None for its own.
        skip_bad_images: leave out what cannot be read.
        validation: images a class, None for the usual number.
    """

    place: str
    templates: tuple[str, ...] | None
    skip_bad_images: bool = False
    validation: int | None = None

    def load(self, shots: Shots, seed: int) -> Dataset:
        """All its classes."""
        return load_data(self.place, shots=shots, seed=seed, templates=self.templates, validation=self.validation)


@dataclass(frozen=True)
class Job:
    """One training and its evaluations.

    Args:
        id: hash of what decides the outcome.
        label: for a person.
        model: where the CLIP is.
        sources: the data sets it touches, by name.
        data, shots, seed, classes: what it trains on.
        method: section ``method`` of a run's settings; None for the CLIP as it is.
        train: section ``train`` but for the device.
        device: to compute on.
        split: test or val.
        views: hash of each evaluation, to the evaluation.
    """

    id: str
    label: str
    model: str
    sources: Mapping[str, Source]
    data: str
    shots: int | str
    seed: int
    classes: str
    method: Mapping[str, Any] | None
    train: Mapping[str, Any]
    device: str
    split: str
    views: Mapping[str, View]


@dataclass(frozen=True)
class Entry:
    """A job as a line of a protocol's table; ``views`` and ``final`` name its evaluations by hash.

    ``seed`` is None for the CLIP as it is, which stands for every seed.
    """

    protocol: str
    data: str
    method: str
    shots: int | str
    seed: int | None
    job: str
    views: Mapping[str, View]
    final: Mapping[str, View] = field(default_factory=dict)

    @property
    def table(self) -> tuple[object, ...]:
        """What all lines of one table share."""
        return self.protocol, self.data, self.shots, tuple(self.views.values())

    @property
    def place(self) -> tuple[object, ...]:
        """What no two lines share."""
        return self.table, self.method, self.seed


@dataclass(frozen=True)
class Plan:
    """All lines and the jobs behind them."""

    suite: str
    entries: tuple[Entry, ...]
    jobs: Mapping[str, Job] = field(default_factory=dict)
    against: str | None = None

    def to_json(self) -> str:
        """The lines, without which the outcomes say nothing; the jobs, which hold places of one machine, stay out."""
        lines = [asdict(entry) for entry in self.entries]
        return json.dumps({"suite": self.suite, "against": self.against, "entries": lines}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The lines again, without jobs."""
        record = json.loads(text)
        entries = tuple(_entry(line) for line in record["entries"])
        return cls(record["suite"], entries, against=record["against"])

    def with_final(self, final: Final, best: Mapping[tuple[object, ...], list[str]], suite: Suite) -> Plan:
        """The plan with the second stage's evaluations for the ``best`` methods of each table."""
        entries, jobs = [], dict(self.jobs)
        for entry in self.entries:
            if entry.method in best.get(entry.table, []):
                views = [_final(view, final) for view in entry.views.values()]
                extra = {_view_key(view, suite): view for view in views}
                entry = replace(entry, final=extra)
                job = jobs[entry.job]
                jobs[job.id] = replace(job, views={**job.views, **extra})
            entries.append(entry)
        return replace(self, entries=tuple(entries), jobs=jobs)


def make_plan(suite: Suite, device: str = "cpu") -> Plan:
    """Every run that the suite asks for.

    Args:
        suite: from `load_suite`.
        device: that runs compute on; not part of their identity.

    Raises:
        InputError: a model or data that cannot be read, settings that do not fit.
    """
    entries: dict[tuple[object, ...], Entry] = {}
    jobs: dict[str, Job] = {}
    for block in suite.blocks:
        for name in block.data:
            for shots in block.shots or (suite.data[name].shots,):
                for method in block.methods:
                    for seed in _seeds(suite, block, method):
                        entry, job = _line(suite, block, name, shots, method, seed, device)
                        entries.setdefault(entry.place, entry)
                        jobs[job.id] = _joined(jobs[job.id], job) if job.id in jobs else job
    return Plan(suite.name, tuple(entries.values()), jobs, suite.against)


def _joined(a: Job, b: Job) -> Job:
    """One training, with the evaluations of both."""
    return replace(a, views={**a.views, **b.views}, sources={**a.sources, **b.sources})


def _seeds(suite: Suite, block: Block, method: str) -> tuple[int | None, ...]:
    """The CLIP as it is depends on no seed, but the validation images do."""
    return (None,) if suite.methods[method] is None and suite.split == "test" else block.seeds


def _line(
    suite: Suite, block: Block, name: str, shots: int | str, method: str, seed: int | None, device: str
) -> tuple[Entry, Job]:
    protocol, data = PROTOCOLS[block.protocol], suite.data[name]
    model = suite.place(suite.model, "model")
    template = View("test", suite.split, name, data.eps, block.attacks or suite.attacks, block.limit or suite.limit)
    views = {_view_key(view, suite): view for view in protocol.views(block, template)}
    about: dict[str, Any] = {"model": _model_identity(model), "data": _data_identity(suite, name)}
    section = suite.methods[method]
    train: dict[str, Any] = {}
    if section is not None:
        section, train = suite.settings(name, method, seed or 0)
        others = _other_models(suite, section)
        known = {setting: _model_identity(place) for setting, place in others.items()}
        about |= {"method": section | known, "train": train, "classes": protocol.train_classes}
        section |= others
    if seed is not None:
        about |= {"shots": shots, "seed": seed}
    job = Job(
        id=_digest(about),
        label=_label(f"{method} on {name}", shots, seed, protocol.train_classes),
        model=model,
        sources={n: _source(suite, n) for n in dict.fromkeys((name, *(view.data for view in views.values())))},
        data=name,
        shots=shots,
        seed=seed or 0,
        classes=protocol.train_classes,
        method=section,
        train=train,
        device=device,
        split=suite.split,
        views=views,
    )
    return Entry(block.protocol, name, method, shots, seed, job.id, views), job


def _label(what: str, shots: int | str, seed: int | None, classes: str) -> str:
    if seed is None:
        return what
    return f"{what}, {shots} shots, seed {seed}" + (f", {classes} classes" if classes != "all" else "")


def _other_models(suite: Suite, section: Mapping[str, Any]) -> dict[str, str]:
    """Where the CLIPs are that a method's settings name beside the suite's own, by setting."""
    names = find_method(section["name"]).Settings.models
    return {name: suite.place(section[name], "model") for name in names if section[name] is not None}


def _source(suite: Suite, name: str) -> Source:
    entry = suite.data[name]
    return Source(suite.place(entry.source), entry.templates, entry.skip_bad_images, entry.validation)


def _final(view: View, final: Final) -> View:
    return replace(
        view, name=f"{view.name} final", split=f"{view.split}-final", attacks=final.attacks, limit=final.limit
    )


def _view_key(view: View, suite: Suite) -> str:
    about = asdict(view) | {"data": _data_identity(suite, view.data), "of": suite.split}
    return _digest({key: value for key, value in about.items() if key not in ("name", "split")})


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _model_identity(place: str) -> tuple[str, ...]:
    info = encoder_info(place)
    return info.weights_sha256, info.tokenizer_sha256, repr(info.preprocessing)


@cache
def encoder_info(place: str) -> EncoderInfo:
    """What is known of a CLIP; read once a process."""
    return load_clip(place).info


def _data_identity(suite: Suite, name: str) -> str:
    return data_identity(_source(suite, name))


@cache
def data_identity(source: Source) -> str:
    """Hash of class names, templates, and the ids and file sizes of all images, wherever they lie.

    Without unreadable images, or with another number of validation images, it is another data set.
    """
    identity = _identity(load_data(source.place, shots="all", templates=source.templates))
    if source.validation is not None:
        identity += f" with {source.validation} validation images a class"
    return f"{identity} without unreadable images" if source.skip_bad_images else identity


def _identity(data: Dataset) -> str:
    digest = hashlib.sha256(repr((data.class_names, data.templates)).encode())
    for images in (data.train, data.val, data.test):
        for id_, label, source in zip(images.ids, images.labels.tolist(), images.sources, strict=True):
            size = source.stat().st_size if isinstance(source, Path) else 0
            digest.update(f"{id_}\0{label}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _entry(line: Mapping[str, Any]) -> Entry:
    views = {name: {key: _view(view) for key, view in line[name].items()} for name in ("views", "final")}
    return Entry(**{**line, **views})


def _view(record: Mapping[str, Any]) -> View:
    return View(**{**record, "attacks": tuple(record["attacks"])})
