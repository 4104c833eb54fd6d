"""The run folder: everything that a result rests on, written whole or not at all, without pickle.

::

    RUN/config.yaml                    settings; `apd train --config` takes it again
    RUN/run.json                       manifest: model and other CLIPs that taught, with hashes, images used and left out,
                                       classes, templates, prompts, seeds, versions, status, seconds of training, what the
                                       method found out (facts), temperature of the probabilities (calibration)
    RUN/prompts.safetensors            what was learned
    RUN/metrics.jsonl                  one line per log entry
    RUN/checkpoint/                    the last state of training and the one before; gone when training is finished
    RUN/results/                       evaluations
    RUN/images/                        adversarial images, if they were asked for
    RUN/README.md                      model card
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.errors import ApdError, InputError
from apd.runs.checkpoint import Checkpoints
from apd.runs.differences import check_same, moved
from apd.runs.manifest import TRAIN_AGAIN, read_result
from apd.runs.metrics import append_metrics, cut_off
from apd.runs.output import FORMAT, check_kept, check_output, clear, read_manifest, summary_files, summary_name, taken
from apd.util.files import AnyPath, sync_file, user_path, write_atomic
from apd.util.locks import FolderLock, tidy
from apd.util.tensors import read_tensors, sha256_of_file, sha256_of_text, write_tensors
from apd.util.text import quoted, to_json

if TYPE_CHECKING:
    from torch import Tensor

    from apd.models.calibration import Calibration
    from apd.runs.config import RunConfig

_LARGEST_PROMPTS = 2 * 2**30
"""Bytes: the class-specific prompts of thousands of classes in every block."""


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
        self._overwrite = False
        self._checkpoints = Checkpoints(path / "checkpoint")
        self.lock = FolderLock(path, again=True)
        """Held from the first write to the end of training, and while an evaluation writes."""

    def __repr__(self) -> str:
        names = [
            str(self.manifest.get(key, {}).get(name, "?")) for key, name in (("model", "source"), ("data", "name"))
        ]
        return f"Run({str(self.path)!r}: {' on '.join(names)}{'' if self.finished else ', unfinished'})"

    def __fspath__(self) -> str:
        """Return the folder: a run may be given wherever one is asked for by its path."""
        return str(self.path)

    __str__ = __fspath__  # messages and the commands they propose name the folder

    def _repr_html_(self) -> str:
        """Return tables of the run and its evaluations for notebooks."""
        from apd.runs.shown import run_html

        return run_html(self, summary_files(self.results))

    @classmethod
    def create(
        cls,
        path: AnyPath,
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
                that checkpoint is cut off. The same model and data may be elsewhere now. A finished run is returned as it is.
            overwrite: replace the run that is there.
            writer: False in all but the first of several processes.

        Raises:
            InputError: see `check_output`; other settings or another model or data than the run to resume has.
        """
        manifest = {"format": FORMAT, "status": "running", **manifest}
        fresh = cls(user_path(path), manifest, writer=writer, starting=config)
        fresh._overwrite = overwrite
        if writer:
            check_output(fresh.path, resume=resume, overwrite=overwrite)
        if not fresh._file("run.json").is_file():
            return fresh
        if not resume:
            if writer:
                with fresh.lock.held():  # a run that is being written is not to be replaced
                    pass
            return fresh
        run = cls.open(fresh.path, finished=False)
        check_same(run.path, (run.config, config), (run.manifest, fresh.manifest))
        run.writer = writer
        return run._resumed(config, fresh.manifest) if writer else run

    def _resumed(self, config: RunConfig, manifest: Mapping[str, Any]) -> Run:
        """Take the run over from a process that has ended, at its last checkpoint; a finished one is returned as it is."""
        if not self.finished:
            self.lock.acquire()
            self.manifest = read_manifest(self.path)  # its writer may have finished it meanwhile
        if self.finished:
            with suppress(InputError), self.lock.held():  # what a kill left; another process may be evaluating it
                self._checkpoints.remove()
            return self
        try:
            tidy(self.path)
            if moved(self.config, config):
                self._keep_places(config, manifest)
            self._rewind()
        except BaseException:
            self.lock.release()
            raise
        return self

    def _keep_places(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        """Name the model and the data by where they are now; what is there is the same."""
        write_atomic(self._file("config.yaml"), config.to_yaml())
        self.manifest |= {key: manifest[key] for key in ("model", "teachers", "data") if key in manifest}
        self._save_manifest()

    @classmethod
    def open(cls, path: AnyPath, *, finished: bool = True) -> Run:
        """An existing run folder.

        Args:
            path: the folder.
            finished: refuse an unfinished run.

        Raises:
            InputError: no run folder, a damaged one, one of another version, or an unfinished run.
        """
        folder = user_path(path)
        manifest = read_manifest(folder)
        run = cls(folder, manifest)
        if finished and not run.finished:
            raise InputError(
                f"The run {str(path)!r} is unfinished; resume with: apd train --output {quoted(path)} --resume"
            )
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to a finished run while a command adds to it; remove leftovers of killed ones first.

        Raises:
            InputError: another process is writing to it, it is no longer finished, or nothing can be written to it.
        """
        check_kept(self.path)
        with self.lock.held():
            self.manifest = Run.open(self.path).manifest
            tidy(self.path)
            yield

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
            raise InputError(f"{file} is missing; restore it, or {TRAIN_AGAIN}.")
        return self._starting or (load_recorded(file) if self.finished else load_config(file))

    @property
    def steps_kept(self) -> int | None:
        """Optimiser steps that its checkpoint holds; None where there is none.

        Raises:
            InputError: a damaged checkpoint, and none before it.
        """
        found = self._checkpoints.load()
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
        """Seconds of training so far, over all restarts, without work that was lost after the last checkpoint."""
        return round(time.monotonic() - self._began, 2)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``; numbers that JSON does not know (nan, inf) become null."""
        if self._ready():
            append_metrics(self._file("metrics.jsonl"), record)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save where training is; the last checkpoint is kept as the one before.

        Args:
            step: optimiser steps done.
            tensors: everything that training changes.
            state: the rest, as JSON.
        """
        if not self._ready():
            return
        metrics = self._file("metrics.jsonl")
        logged = metrics.stat().st_size if metrics.exists() else 0
        if logged:
            sync_file(metrics)  # a checkpoint may not outlast the lines before it
        record = {
            "format": FORMAT,
            "step": step,
            "metrics_bytes": logged,
            "seconds": self.seconds,
            "state": dict(state),
        }
        self._checkpoints.save(tensors, record)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state (with ``step``) of the last checkpoint; None where there is none.

        Raises:
            InputError: a damaged checkpoint, and none before it.
        """
        found = None if self._starting else self._checkpoints.load()
        return None if found is None else (found[0], {**found[1]["state"], "step": found[1]["step"]})

    def save_prompts(self, tensors: Mapping[str, Tensor]) -> None:
        """Write ``prompts.safetensors``."""
        if self._ready():
            write_tensors(self._file("prompts.safetensors"), tensors, {"format": "pt"})

    def load_prompts(self) -> dict[str, Tensor]:
        """The learned tensors.

        Raises:
            InputError: a missing or damaged file, or one that is not the finished run's own.
        """
        file = self._file("prompts.safetensors")
        tensors, _ = read_tensors(file, TRAIN_AGAIN, most=_LARGEST_PROMPTS)
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
        """Mark the run as done: the model card, then the manifest. The checkpoints go, and the lock is free.

        Args:
            summary: the last validation.
            facts: `Method.facts`.
            calibration: how probable its answers are, where that could be measured.
        """
        if not self._ready():
            return
        if self._file("metrics.jsonl").exists():
            sync_file(self._file("metrics.jsonl"))
        hashes = {
            "prompts_sha256": sha256_of_file(self._file("prompts.safetensors")),
            "config_sha256": sha256_of_text(self._file("config.yaml")),
        }
        done = {"status": "done", **hashes, "seconds": self.seconds, "summary": dict(summary)}
        self.manifest = {**self.manifest, **done, "facts": dict(facts or {})}
        if calibration is not None:
            self.manifest["calibration"] = calibration.record()
        self._save_card()
        self._save_manifest()
        self._checkpoints.remove()
        self.lock.release()

    def save_calibration(self, calibration: Calibration) -> None:
        """Keep how the probabilities of a finished run are calibrated, in the manifest and the model card."""
        self.manifest["calibration"] = calibration.record()
        self._save_card()
        self._save_manifest()

    def save_result(self, result: Mapping[str, Any], name: str | None = None) -> Path:
        """Keep what an evaluation found (`Result.to_dict`) in ``results/``, and in the model card.

        Args:
            result: replaces one of its name.
            name: of the file; None: `apd.runs.output.summary_name`.

        Returns:
            The file.

        Raises:
            ApdError: the folder has gone.
        """
        self._check_there(f"apd evaluate {quoted(self.path)}")
        file = self.results / (name or summary_name(result))
        write_atomic(file, to_json(result) + "\n")
        self._save_card()
        return file

    def _save_card(self) -> None:
        from apd.runs.card import render_card

        results = [read_result(file) for file in summary_files(self.results)]
        write_atomic(self._file("README.md"), render_card(self.path, self.manifest, self.config, results))

    def _file(self, name: str) -> Path:
        return self.path / name

    def _save_manifest(self) -> None:
        write_atomic(self._file("run.json"), to_json(self.manifest) + "\n")

    def _rewind(self) -> None:
        """Take up the clock of the last checkpoint and cut off what was logged after it.

        The log of a resumed run is thus that of an uninterrupted one.
        """
        found = self._checkpoints.clean()
        self._began -= found[1].get("seconds", 0.0) if found else 0.0
        cut_off(self._file("metrics.jsonl"), found[1]["metrics_bytes"] if found else 0)

    def _ready(self) -> bool:
        """Whether this process writes; makes the folder of a new run, in place of one that is overwritten.

        Raises:
            InputError: another process is writing there, or has made a run meanwhile.
            ApdError: the folder that was there has gone.
        """
        if self.writer and self._starting:
            self.lock.acquire()
            if not self._overwrite and self._file("run.json").exists():
                raise InputError(taken(self.path))
            tidy(self.path)
            clear(self.path)
            # The settings first: with them alone, a run that is killed here can be resumed by its folder's name.
            write_atomic(self._file("config.yaml"), self._starting.to_yaml())
            self._save_manifest()
            self._starting = None
        if self.writer:
            self._check_there(f"apd train --output {quoted(self.path)} --resume")
        return self.writer

    def _check_there(self, again: str) -> None:
        """Refuse to make anew, with a part of what was in it, a folder that has gone while it was written to."""
        if not self._file("run.json").exists():
            raise ApdError(
                f"{self.path} has gone while it was written to (removed, moved or unmounted), and what was not saved before is "
                f"lost. Put it back, and resume with: {again}"
            )
