"""From a suite to a folder of results: plan, estimate, run, rank, run the second stage, write."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from apd.bench.engines import import_ray, run_local, run_ray
from apd.bench.estimate import Forecast, calibrate
from apd.bench.job import Outcome, Report, read_outcome
from apd.bench.loaded import dataset, encoder
from apd.bench.plan import Job, Plan, make_plan
from apd.bench.progress import BenchProgress
from apd.bench.report.curves import write_curves
from apd.bench.report.plots import write_plots
from apd.bench.report.rows import plan_file, read_bench, write_rows
from apd.bench.report.tables import best_methods, latex, make_tables, markdown
from apd.bench.suite import Suite
from apd.data import Dataset
from apd.data.copies import about_copies
from apd.data.settings import DataSettings
from apd.errors import InputError, nearest
from apd.util.files import check_writable, user_path, write_atomic
from apd.util.locks import FolderLock, tidy
from apd.util.messages import get_logger, speaking
from apd.util.progress import counted, pretty_seconds
from apd.util.versions import __version__

log = get_logger("apd.bench")

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Machine:
    """Where runs are computed.

    Args:
        engine: local or ray.
        workers: runs at a time.
        threads: threads per run.
        gpus: GPUs per run; 0: runs compute on the CPU.
    """

    engine: str
    workers: int
    threads: int
    gpus: float

    @property
    def device(self) -> str:
        """The device a run asks for."""
        return "cuda" if self.gpus else "cpu"

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[Report]:
        """Do jobs; yield each report when it comes."""
        if self.engine == "ray":
            return run_ray(jobs, folder, workers=self.workers, threads=self.threads, gpus=self.gpus)
        gpus = torch.cuda.device_count() if self.gpus else 0
        return run_local(jobs, folder, workers=self.workers, threads=self.threads, gpus=gpus)


def find_machine(engine: str = "local", workers: int | None = None, gpus: float | None = None) -> Machine:
    """Find what there is to compute with, and share it out to workers.

    Args:
        engine: local, or ray: the cluster of RAY_ADDRESS or of this machine, else a new one on this machine.
        workers: runs at a time; None: one per GPU, or one without GPUs.
        gpus: GPUs per run (Ray: may be a fraction); None: 1 if there are any.

    Raises:
        InputError: an unknown engine, Ray missing, fewer than one worker, GPUs asked for that are not there.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least one is needed; leave it out for one per GPU, or one.")
    if gpus is not None and gpus < 0:
        raise InputError(f"--gpus {gpus:g} for each run is negative; give 0 for the CPU.")
    if engine not in ENGINES:
        raise InputError(f"no engine {engine!r}. {nearest(engine, ENGINES)}")
    if engine == "ray":
        ray = import_ray()
        resources = ray.cluster_resources()
        cores, found = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        # A run that asks for more threads or GPUs than any node has would wait for ever.
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max((int(node.get("CPU", 1)) for node in nodes), default=1)
        largest = max((int(node.get("GPU", 0)) for node in nodes), default=found)
    else:
        cores, found = _cores(), torch.cuda.device_count()
        most, largest = cores, found
    gpus = float(found > 0) if gpus is None else gpus
    if gpus > found:
        raise InputError(f"--gpus {gpus:g} for each run, but there are {found}; ask for fewer, or none.")
    if gpus > largest:
        raise InputError(f"--gpus {gpus:g} for each run, but no node has more than {largest}; ask for fewer.")
    if gpus > 1 and engine == "local":
        raise InputError(f"--gpus {gpus:g}: a run of the local engine sees one GPU; use --engine ray, or --gpus 1.")
    count = max(1, found if gpus else 1) if workers is None else workers
    return Machine(engine, count, max(1, min(cores // count, most, _most_threads())), gpus)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _most_threads() -> int:
    """The most threads that OMP_NUM_THREADS allows a process, if it is set."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return int(allowed) if allowed.isdigit() else sys.maxsize


def bench(suite: Suite, folder: str | Path, *, machine: Machine | None = None) -> dict[str, str]:
    """Do every run of a suite that is not done yet, and write results, tables and plots.

    Args:
        suite: from `load_suite`.
        folder: for all output; an unfinished bench in it is resumed.
        machine: from `find_machine`; None: this machine, one worker.

    Returns:
        The error of each run that failed, by the run's label.

    Raises:
        InputError: settings, model or data that cannot be used, another bench at work in the folder; found before
            the first run.

    Example:
        >>> from apd.bench import bench, load_suite
        >>> bench(load_suite("suites/quick.yaml"), "runs/quick")  # doctest: +SKIP
        {}
    """
    path, machine, failures = user_path(folder).resolve(), machine or find_machine(), dict[str, str]()
    check_writable(path)
    plan = make_plan(suite, machine.device)
    with _lock(path).held(), speaking():
        tidy(path)
        outcomes = _outcomes(plan, path)
        tell_doubts(plan, outcomes)
        _tell_versions(plan, outcomes)
        for stage in _stages(plan, suite, path, failures):
            expected = _expected(stage, path, machine)
            if not expected:
                continue
            todo = [stage.jobs[job] for job in expected]
            with BenchProgress(stage, expected, min(machine.workers, len(todo))) as progress:
                for report in machine.run(todo, path):
                    progress.finished(report)
                    if report.error is not None:
                        failures[stage.jobs[report.job].label] = report.error
        _write_tables(path)
    return failures


def _lock(folder: Path) -> FolderLock:
    return FolderLock(folder, "wait for its end, or choose another --output.")


def _stages(plan: Plan, suite: Suite, folder: Path, failures: Mapping[str, str]) -> Iterator[Plan]:
    """Yield the plan and, once it is done, that of the second stage, without jobs that failed."""
    yield _with_former_final(plan, suite, folder)
    if suite.final is not None:
        best = best_methods(plan, _outcomes(plan, folder), suite.final.best, suite.final.protocols)
        plan = plan.with_final(suite.final, best, suite)
        yield replace(plan, jobs={id_: job for id_, job in plan.jobs.items() if job.label not in failures})


def _with_former_final(plan: Plan, suite: Suite, folder: Path) -> Plan:
    """Plan the first stage so that tables show what a former second stage measured until there is another."""
    best: dict[tuple[object, ...], list[str]] = {}
    if suite.final is None or not plan_file(folder).is_file():
        return plan
    with suppress(InputError):  # a damaged plan is written anew
        for row in read_bench(folder)[0].rows:
            if row.final:
                best.setdefault(row.table, []).append(row.method)
    return replace(plan.with_final(suite.final, best, suite), jobs=plan.jobs)


def tell_doubts(plan: Plan, done: Container[str] = ()) -> None:
    """Say what a training would say of its data and budget, which is quiet in a bench: once for all seeds and methods.

    Copies among the images are looked for, which may take seconds, where most images of a data set are learned from. Data
    that cannot be drawn are told by the runs that fail of it.

    Args:
        plan: the trainings.
        done: ids of those that are finished.
    """
    told: list[tuple[str, str | None]] = []
    drawn: dict[tuple[str, DataSettings], None] = {}
    for job in plan.jobs.values():
        if job.config is not None and job.id not in done:
            name = next(iter(job.data))
            told.append((name, job.config.train.threat.doubt()))
            drawn[name, job.config.data.model_copy(update={"seed": 0})] = None
    largest: dict[str, Dataset] = {}
    for name, section in drawn:
        with suppress(InputError):
            data = dataset(section)
            told.append((name, data.shortage()))
            if name not in largest or _learned(data) > _learned(largest[name]):
                largest[name] = data
    for name, data in largest.items():
        told += [(name, about_copies(data)), (name, about_copies(data, "val"))]
    for name, doubt in dict.fromkeys(told):
        if doubt:
            log.warning(f"{plan.suite}: data.{name}: {doubt}")


def _learned(data: Dataset) -> int:
    return len(data.train) + len(data.unlabelled)


def _tell_versions(plan: Plan, outcomes: Mapping[str, Outcome]) -> None:
    """Say which outcomes that count as done were made by another version of apd: methods may have changed since."""
    made = {job: outcome.made_with(plan.jobs[job].evals) - {__version__} for job, outcome in outcomes.items()}
    other = [job for job, versions in made.items() if versions]
    if other:
        names = ", ".join(sorted(set.union(*(made[job] for job in other))))
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        log.warning(
            f"{plan.suite}: taken as done, but made with apd {names} (this is {__version__}): "
            f"{plan.jobs[other[0]].label}{more}; to make them again, choose another --output."
        )


def _outcomes(plan: Plan, folder: Path) -> dict[str, Outcome]:
    found = {job: read_outcome(folder, job) for job in plan.jobs}
    return {job: outcome for job, outcome in found.items() if outcome is not None}


def _expected(plan: Plan, folder: Path, machine: Machine) -> dict[str, float]:
    """Save the plan; estimate the seconds of each job that is not done yet, and say how long all of them take."""
    write_atomic(plan_file(folder), plan.to_json())
    known = _outcomes(plan, folder)
    todo = [job for job in plan.jobs.values() if job.id not in known or known[job.id].missing(job)]
    done = len(plan.jobs) - len(todo)
    if not todo:
        log.info(f"{plan.suite}: nothing to do, {counted(done, 'run')} done.")
        return {}
    models = dict.fromkeys(job.model for job in plan.jobs.values())
    paces = {model: calibrate(model, _own(machine.device), machine.threads) for model in models}
    encoder.cache_clear()  # leaves the memory to the workers
    forecast = Forecast.of(paces, plan.jobs.values(), known)
    expected = {job.id: forecast.seconds(job, known.get(job.id)) for job in todo}
    workers = min(machine.workers, len(todo))
    origin = "from finished runs" if known else "an estimate on free cores, from a short calibration"
    log.info(
        f"{plan.suite}: {counted(len(todo), 'run')} to do, {done} done; "
        f"about {pretty_seconds(sum(expected.values()) / workers)} with {counted(workers, f'{machine.engine} worker')} "
        f"of {counted(machine.threads, 'thread')} on {machine.device} ({origin})"
    )
    return expected


def _own(device: str) -> str:
    """The device for this process, which may lack the workers' GPU if they are on a cluster."""
    return device if device != "cuda" or torch.cuda.is_available() else "cpu"


def write_tables(folder: str | Path, against: str | None = None) -> Path:
    """Write results, tables and plots from what is in the folder, without any run.

    Args:
        folder: where a bench wrote.
        against: the method that all are compared with, from now on; None: the one that they were compared with before.

    Returns:
        ``table.md``.

    Raises:
        InputError: no bench there, damaged files, a method without a row, a bench at work in the folder.
    """
    path = user_path(folder)
    plan, _ = read_bench(path)  # a folder without a bench is not made for its lock
    compared = plan if against is None else plan.compared_with(against)
    with _lock(path).held(), speaking():
        tidy(path)
        if compared.against != plan.against:
            write_atomic(plan_file(path), compared.to_json())
        return _write_tables(path)


def _write_tables(path: Path) -> Path:
    plan, outcomes = read_bench(path)
    files = write_rows(path, plan, outcomes)
    tables = make_tables(plan, outcomes)
    write_atomic(path / "table.md", markdown(plan.suite, tables, plan.image_size))
    write_atomic(path / "table.tex", latex(tables))
    filled = [table for table in tables if table.rows]
    plots = [*write_plots(path, filled), *write_curves(path, filled)]
    names = [*(file.name for file in files), "table.md", "table.tex", *(["plots/"] if plots else [])]
    log.info(f"Written: {path}/{', '.join(names)}.")
    return path / "table.md"
