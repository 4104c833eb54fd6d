"""The run folder: everything that a result rests on, written whole or not at all, without pickle.

::

    RUN/config.yaml                    settings; `apd train --config` takes it again
    RUN/run.json                       manifest: model and other CLIPs that taught, with hashes, images used and left out,
                                       classes, templates, prompts, seeds, versions, status, seconds of training, what the
                                       method found out (facts), temperature of the probabilities (calibration)
    RUN/prompts.safetensors            what was learned (kilobytes)
    RUN/metrics.jsonl                  one line per log entry
    RUN/checkpoint/state.safetensors   one file, so that it is there whole or not at all; gone when training is finished
    RUN/results/                       evaluations
    RUN/images/                        adversarial images, if they were asked for
    RUN/README.md                      model card
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.errors import InputError
from apd.runs.differences import check_same
from apd.util.files import check_writable, write_atomic, writing
from apd.util.tensors import read_tensors, sha256_of_file, write_tensors
from apd.util.text import quoted, to_json

if TYPE_CHECKING:
    from torch import Tensor

    from apd.models.calibration import Calibration
    from apd.runs.config import RunConfig

FORMAT = 1
"""Version of the run folder; a folder of another version is refused."""

_SUMMARY = "summary-"
_LONGEST_NAME = 180
# run.json goes last and comes first: as long as it is there, a half-removed or half-made folder is known as a run.
_OWN = (
    "config.yaml",
    "prompts.safetensors",
    "metrics.jsonl",
    "checkpoint",
    "results",
    "images",
    "tensorboard",
    "README.md",
    "run.json",
)


class Run:
    """One training and what came of it.

    Args:
        path: the folder.
        manifest: the content of ``run.json``.
        writer: False in all but the first of several processes: nothing is written.
        starting: settings of a run whose folder is still to be made; None for one that is there.

    Example:
        >>> import apd
        >>> run = apd.Run.open("runs/demo/apd")  # doctest: +SKIP
        >>> run.manifest["class_names"]  # doctest: +SKIP
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], *, writer: bool = True, starting: RunConfig | None = None
    ) -> None:
        self.path, self.manifest, self.writer, self._starting = path, manifest, writer, starting
        self._began = time.monotonic()

    def __repr__(self) -> str:
        names = [
            str(self.manifest.get(key, {}).get(name, "?")) for key, name in (("model", "source"), ("data", "name"))
        ]
        return f"Run({str(self.path)!r}: {' on '.join(names)}{'' if self.finished else ', unfinished'})"

    def _repr_html_(self) -> str:
        """Return tables of the run and its evaluations for notebooks."""
        from apd.runs.shown import run_html

        return run_html(self, self._summaries())

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: RunConfig,
        manifest: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        writer: bool = True,
    ) -> Run:
        """A new run, or one to resume.

        A new one changes nothing on disk before its first checkpoint or line of metrics, so that bad input found until
        then costs no finished work.

        Args:
            path: new or empty folder, or a run to resume or overwrite.
            config: settings.
            manifest: circumstances; format and status are added.
            resume: continue from the last checkpoint of an unfinished run of the same settings; what was logged after
                that checkpoint is cut off. A finished run is returned as it is.
            overwrite: replace the run that is there.
            writer: False in all but the first of several processes.

        Raises:
            InputError: see `check_output`; other settings or another model or data than the run to resume has.
        """
        fresh = cls(Path(path), {"format": FORMAT, "status": "running", **manifest}, writer=writer, starting=config)
        if writer:
            check_output(fresh.path, resume=resume, overwrite=overwrite)
        if resume and fresh._file("run.json").is_file():
            run = cls.open(fresh.path, finished=False)
            run.writer = writer
            check_same(run.path, (run.config, config), (run.manifest, fresh.manifest))
            if writer and not run.finished:
                run._rewind()
            return run
        return fresh

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> Run:
        """An existing run folder.

        Args:
            path: the folder.
            finished: refuse an unfinished run.

        Raises:
            InputError: no run folder, a damaged one, one of another version, or an unfinished run.
        """
        folder = Path(path)
        file = folder / "run.json"
        if not folder.is_dir():
            raise InputError(f"No run folder {str(path)!r}; apd train … --output {quoted(path)} makes one.")
        if not file.is_file():
            raise InputError(f"{str(path)!r} is not a run folder (it has no run.json); apd train … --output makes one.")
        try:
            manifest = json.loads(file.read_text())
            version, _ = manifest["format"], manifest["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); train again with --overwrite.") from error
        if version != FORMAT:
            raise InputError(
                f"{str(path)!r} is a run folder of version {version}, this apd reads version {FORMAT}; "
                "use the apd it was made with (versions.apd in its run.json) or train again with --overwrite."
            )
        run = cls(folder, manifest)
        if finished and not run.finished:
            raise InputError(
                f"The run {str(path)!r} is unfinished; resume with: apd train --output {quoted(path)} --resume"
            )
        return run

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return bool(self.manifest["status"] == "done")

    @property
    def config(self) -> RunConfig:
        """The settings it was started with."""
        from apd.runs.config import load_config, load_recorded

        file = self._file("config.yaml")
        if not self._starting and not file.is_file():
            raise InputError(f"{file} is missing: the run was stopped while it began; start again with --overwrite.")
        return self._starting or (load_recorded(file) if self.finished else load_config(file))

    @property
    def steps_kept(self) -> int | None:
        """Optimiser steps that its checkpoint holds; None where there is none.

        Raises:
            InputError: a damaged checkpoint.
        """
        found = self._read_checkpoint()
        return None if found is None else int(found[1]["step"])

    @property
    def calibration(self) -> Calibration | None:
        """How its probabilities are calibrated; None where nobody has measured it, as in older runs."""
        from apd.models.calibration import Calibration

        record = self.manifest.get("calibration")
        return None if record is None else Calibration.read(record)

    @property
    def results(self) -> Path:
        """The folder of its evaluations."""
        return self.path / "results"

    @property
    def images(self) -> Path:
        """The folder of the adversarial images that its evaluations keep."""
        return self.path / "images"

    @property
    def seconds(self) -> float:
        """That training took so far, in all its starts; what a kill threw away after a checkpoint does not count."""
        return round(time.monotonic() - self._began, 2)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``; numbers that JSON does not know (nan, inf) become null."""
        if not self._ready():
            return
        file = self._file("metrics.jsonl")
        with writing(file), open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({key: _finite(value) for key, value in record.items()}) + "\n")

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save where training is, replacing the last checkpoint in one move.

        Args:
            step: optimiser steps done.
            tensors: everything that training changes.
            state: the rest, as JSON.
        """
        if not self._ready():
            return
        metrics = self._file("metrics.jsonl")
        logged = metrics.stat().st_size if metrics.exists() else 0
        record = {
            "format": FORMAT,
            "step": step,
            "metrics_bytes": logged,
            "seconds": self.seconds,
            "state": dict(state),
        }
        write_tensors(self._checkpoint, tensors, {"apd": json.dumps(record)})

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state (with ``step``) of the last checkpoint; None where there is none.

        Raises:
            InputError: a damaged checkpoint.
        """
        found = None if self._starting else self._read_checkpoint()
        return None if found is None else (found[0], {**found[1]["state"], "step": found[1]["step"]})

    def save_prompts(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Write ``prompts.safetensors``."""
        if self._ready():
            write_tensors(self._file("prompts.safetensors"), tensors, {"format": "pt", **(metadata or {})})

    def load_prompts(self) -> dict[str, Tensor]:
        """The learned tensors.

        Raises:
            InputError: a missing or damaged file, or one that is not the finished run's own.
        """
        file = self._file("prompts.safetensors")
        tensors, _ = read_tensors(file, "train again with --overwrite")
        digest = self.manifest.get("prompts_sha256")
        if digest is not None and digest != sha256_of_file(file):
            raise InputError(
                f"{file} is not the file this run saved (its hash differs from run.json); restore it or train again."
            )
        return tensors

    def finish(
        self,
        summary: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Mark the run as done: the model card, then the manifest. The checkpoint goes: a finished run never reads it.

        Args:
            summary: the last validation.
            facts: `Method.facts`.
            calibration: how probable its answers are, where that could be measured.
        """
        if not self._ready():
            return
        hashes = {
            "prompts_sha256": sha256_of_file(self._file("prompts.safetensors")),
            "config_sha256": sha256_of_file(self._file("config.yaml")),
        }
        done = {"status": "done", **hashes, "seconds": self.seconds, "summary": dict(summary)}
        self.manifest = {**self.manifest, **done, "facts": dict(facts or {})}
        if calibration is not None:
            self.manifest["calibration"] = calibration.record()
        self._save_card()
        self._save_manifest()
        shutil.rmtree(self._checkpoint.parent, ignore_errors=True)

    def save_calibration(self, calibration: Calibration) -> None:
        """Keep how the probabilities of a finished run are calibrated, in the manifest and the model card."""
        self.manifest["calibration"] = calibration.record()
        self._save_card()
        self._save_manifest()

    def save_result(self, result: Mapping[str, Any]) -> Path:
        """Keep what an evaluation found (`Result.to_dict`) in ``results/``, and in the model card.

        Returns:
            The file.
        """
        file = self.results / summary_name(result)
        write_atomic(file, to_json(result) + "\n")
        self._save_card()
        return file

    def _save_card(self) -> None:
        from apd.runs.card import render_card

        results = [json.loads(file.read_text()) for file in self._summaries()]
        write_atomic(self._file("README.md"), render_card(self.path, self.manifest, self.config, results))

    def _summaries(self) -> list[Path]:
        return sorted(self.results.glob(f"{_SUMMARY}*.json"))

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "state.safetensors"

    def _file(self, name: str) -> Path:
        return self.path / name

    def _save_manifest(self) -> None:
        write_atomic(self._file("run.json"), to_json(self.manifest) + "\n")

    def _read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not self._checkpoint.exists():
            return None
        tensors, metadata = read_tensors(self._checkpoint, "start this run again with --overwrite")
        return tensors, json.loads(metadata["apd"])

    def _rewind(self) -> None:
        """Take up the clock of the last checkpoint and cut off what was logged after it.

        The log of a resumed run is thus that of an uninterrupted one.
        """
        found = self._read_checkpoint()
        self._began -= found[1].get("seconds", 0.0) if found else 0.0
        keep = found[1]["metrics_bytes"] if found else 0
        metrics = self._file("metrics.jsonl")
        if metrics.exists() and metrics.stat().st_size > keep:
            with writing(metrics):
                os.truncate(metrics, keep)

    def _ready(self) -> bool:
        """Whether this process writes; makes the folder of a new run, in place of one that is overwritten."""
        if self.writer and self._starting:
            self._clear()
            self._save_manifest()
            write_atomic(self._file("config.yaml"), self._starting.to_yaml())
            self._starting = None
        return self.writer

    def _clear(self) -> None:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _OWN:
                place = self._file(name)
                if place.is_dir():
                    shutil.rmtree(place)
                else:
                    place.unlink(missing_ok=True)


def summary_name(result: Mapping[str, Any]) -> str:
    """Name the file of what an evaluation found, after what it depends on."""
    about = [result[key] for key in ("data", "split", "classes", "norm", "eps_text")]
    about += [result["corruption"]] if result.get("corruption") else []
    name = "-".join([*about, f"seed{result['seed']}", f"n{result['n']}", *result["attacks"]])
    short = re.sub(r"[^A-Za-z0-9.-]+", "_", name)
    if len(short) > _LONGEST_NAME:
        short = f"{short[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{_SUMMARY}{short}.json"


def check_output(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Whether a run can be written there; changes nothing, so that it can be asked before any work.

    Raises:
        InputError: a run is there and neither ``resume`` nor ``overwrite`` is asked for; other files are there; the
            place is a file, read-only or full.
    """
    folder = Path(path)
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one.")
    check_writable(folder)
    if (folder / "run.json").is_file():
        if resume:
            Run.open(folder, finished=False)
        elif not overwrite:
            raise InputError(_taken(folder))
    elif folder.is_dir():
        # Names of ours too: a README.md or a results folder without a run is a person's own.
        foreign = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
        if foreign:
            raise InputError(
                f"{folder} holds other files ({foreign[0]}) and no run; choose a new or empty folder as --output."
            )


def _taken(folder: Path) -> str:
    """What to do about a run that is there already."""
    others = "replace it with --overwrite, or choose another --output."
    if Run.open(folder, finished=False).finished:
        return f"{folder} holds a finished run; {others}"
    return f"{folder} holds an unfinished run; resume with: apd train --output {quoted(folder)} --resume; or {others}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
