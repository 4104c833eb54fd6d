"""Kill trainings, evaluations, exports, reports and benches hundreds of times, start them again, and compare what they leave
with what an undisturbed one does.

python -m benchmarks.faults --kills 300
python -m benchmarks.faults --only "export to torch" --only report --each 20 --results docs/results/faults-outputs.json

Half of the kills come at a random time, the others at a random file operation: before a file is opened, renamed or removed, or
when a part of what was written has reached the disk. Times are CPU times, as shares of what undisturbed ones need, so that on a
busy machine kills do not come too late. A cycle starts from nothing, is killed some times at most, and ends; then
every file is compared. After each kill of an export or a report, what others see of it is also looked at: the old files or the
new ones. The random moments come from the seed. What is done is kept: the same command goes on after it.

A tiny random CLIP, so that a kill costs a second; the processes are forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from apd.util.files import write_atomic
from apd.util.messages import speaking
from benchmarks.faults_kill import Ended, Moment, forked
from benchmarks.faults_work import TARGETS, Place, Target, fingerprints, warm_up
from benchmarks.page import BEGIN, END

SHARES = {
    "training": 0.4,
    "evaluation": 0.4,
    "export to torch": 0.05,
    "export to onnx": 0.01,
    "report": 0.04,
    "bench": 0.07,
    "worker of a bench": 0.03,
}
"""Of all kills; those of benches take several times as long."""
MOST_KILLS = 4
"""Kills in a cycle."""
UNDISTURBED = 3
"""Pieces of work that are left alone, to know how long they take."""
TIME, FILES = "random time", "file operation"


@dataclass(frozen=True)
class Cycle:
    """One piece of work, killed some times, and its end.

    Args:
        target: what was done.
        kind: what the moments were drawn from.
        number: of the cycle.
        kills: moments after a start or resumption at which it was killed: seconds of CPU time, or numbers of file operations.
        differing: files that are not those of an undisturbed one: missing, damaged, others, left over. Those that are neither
            the old nor the new one right after a kill are among them.
        error: why it did not end; empty where it did.
        seconds: of all its processes.
        between: kills after which an export or a page was neither the old one nor the new one, but a file of it was missing.
    """

    target: str
    kind: str
    number: int
    kills: list[float]
    differing: list[str] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0
    between: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=300, help="of all targets together (default: 300)")
    parser.add_argument("--only", action="append", choices=[*TARGETS], help="this target; may be repeated")
    parser.add_argument("--each", type=int, help="kills of each target, instead of --kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("docs/results/faults.json"))
    parser.add_argument("--page", type=Path, help="where to put the table between the markers, such as docs/faults.md")
    parser.add_argument("--again", action="store_true", help="forget the kills that the results hold")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after these, between two cycles")
    a = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    done = [] if a.again else _read(a.results, a.seed)
    end = time.monotonic() + 60 * a.minutes
    chosen = [name for name in a.only or TARGETS if find_spec(TARGETS[name].needs) is not None]
    with tempfile.TemporaryDirectory(prefix="apd-faults-") as scratch, speaking(quiet=True):
        place = Place.make(Path(scratch))
        warm_up(place, chosen)
        for name in chosen:
            if time.monotonic() > end:
                break
            kills = round(a.kills * SHARES[name]) if a.each is None else a.each
            for cycle in _cycles(place, name, TARGETS[name], kills, done, a.seed):
                done.append(cycle)
                _write(a.results, a.seed, done)
                print(
                    f"{name}, {cycle.kind} {cycle.number}: {len(cycle.kills)} kills, {cycle.error or cycle.differing or 'same'}"
                )
                if time.monotonic() > end:
                    break
    if a.page is not None:
        before, _, rest = a.page.read_text(encoding="utf-8").partition(BEGIN)
        write_atomic(a.page, f"{before}{BEGIN}\n\n{table(done)}\n{END}{rest.partition(END)[2]}")
    print(table(done))


def _cycles(place: Place, name: str, target: Target, kills: int, done: Sequence[Cycle], seed: int) -> Iterator[Cycle]:
    """Yield new cycles until a target has been killed often enough."""
    left = {kind: kills // 2 + (kills % 2 if kind == TIME else 0) for kind in (TIME, FILES)}
    if target.workers:
        left = {TIME: kills}
    mine = [cycle for cycle in done if cycle.target == name]
    for cycle in mine:
        left[cycle.kind] -= len(cycle.kills)
    if max(left.values()) <= 0:
        return
    whole = _undisturbed(place, target)
    for kind, rest in left.items():
        number = sum(cycle.kind == kind for cycle in mine)
        while rest > 0:
            draw = random.Random(f"{seed} {name} {kind} {number}")
            cycle = _cycle(place, name, kind, number, whole, draw, rest)
            while not cycle.kills and not cycle.error:  # it was faster than any before, and had ended
                cycle = _cycle(place, name, kind, number, whole, draw, rest)
            rest, number = rest - len(cycle.kills), number + 1
            yield cycle


@dataclass(frozen=True)
class Whole:
    """An undisturbed piece of work: its CPU time, its file operations, its files, and those that were there before."""

    cpu: float
    operations: int
    files: dict[str, str]
    before: dict[str, str]

    def seen(self, found: Mapping[str, str], names: Sequence[str]) -> tuple[bool, list[str]]:
        """Look at files that are replaced together, after a kill.

        Returns:
            Whether all of them are there; names of those that are neither the old nor the new ones, or both mixed.
        """
        for files in (self.before, self.files):
            wrong = [name for name in names if name in found and found[name] != files.get(name)]
            if not wrong:
                break
        return all(name in found for name in names), wrong


def _undisturbed(place: Place, target: Target) -> Whole:
    """Do the work several times; the median of the times and the fewest operations stand for all.

    Raises:
        SystemExit: it fails, or leaves other files the next time, so that kills could not be judged.
    """
    found: list[Whole] = []
    for _ in range(UNDISTURBED):
        folder = _fresh(place, target)
        before = fingerprints(folder) if folder.exists() else {}
        ended = _run(place, target, folder, Moment())
        if ended.error:
            raise SystemExit(f"An undisturbed one fails:\n{ended.error}")
        found.append(Whole(ended.cpu, ended.operations, fingerprints(folder), before))
        if found[-1].files != found[0].files:
            raise SystemExit(f"Undisturbed ones leave other files each time: {sorted(found[-1].files)}")
    return replace(found[0], cpu=median(one.cpu for one in found), operations=min(one.operations for one in found))


def _fresh(place: Place, target: Target) -> Path:
    """The same folder for all, because names of folders stand in some files."""
    folder = place.folder / "output"
    shutil.rmtree(folder, ignore_errors=True)
    if target.prepare is not None:
        target.prepare(place, folder)
    return folder


def _run(place: Place, target: Target, folder: Path, moment: Moment) -> Ended:
    return forked(partial(target.work, place, folder), folder, moment, place.folder / "log", worker=target.workers)


def _cycle(place: Place, name: str, kind: str, number: int, whole: Whole, draw: random.Random, most: int) -> Cycle:
    """Start from nothing, kill and resume, let it end, and compare."""
    target, kills, seconds, between, broken = TARGETS[name], list[float](), 0.0, 0, set[str]()
    left = whole
    folder = _fresh(place, target)
    wanted = 1 if target.workers else min(most, draw.randint(1, MOST_KILLS))
    while True:
        moment, at = Moment(), 0.0
        if len(kills) < wanted:
            moment, at = _moment(kind, draw.random(), left)
        ended = _run(place, target, folder, moment)
        seconds += ended.seconds
        if ended.killed:
            kills.append(at)
            left = _left(left, moment)
            together, neither = whole.seen(fingerprints(folder, target.replaced), target.replaced)
            between += not together
            broken.update(neither)
        if ended.error or not ended.killed or target.workers:
            break
    found = fingerprints(folder) if not ended.error else whole.files
    broken.update(file for file in {*found, *whole.files} if found.get(file) != whole.files.get(file))
    return Cycle(name, kind, number, kills, sorted(broken), ended.error, round(seconds, 2), between)


def _moment(kind: str, share: float, left: Whole) -> tuple[Moment, float]:
    if kind == TIME:
        cpu = round(share * left.cpu, 4)
        return Moment(cpu=cpu), cpu
    operation = 1 + int(share * left.operations)
    return Moment(operation=operation), operation


def _left(before: Whole, moment: Moment) -> Whole:
    """What a resumed one does at least, so that the next kill does not come after its end."""
    done, operations = moment.cpu or 0.0, (moment.operation or 1) - 1
    return replace(before, cpu=before.cpu - done, operations=max(1, before.operations - operations))


def table(done: Sequence[Cycle]) -> str:
    """Counts per target and kind, as Markdown."""
    columns = (
        "killed",
        "at a",
        "kills",
        "old or new after the kill",
        "resumed to the end",
        "all files the same",
        "damaged or left-over files",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---|---|---:|---:|---:|---:|---:|"]
    rows = [(name, kind) for name in TARGETS for kind in (TIME, FILES)]
    for name, kind in [*rows, ("all", "")]:
        mine = [cycle for cycle in done if name == "all" or (cycle.target, cycle.kind) == (name, kind)]
        if not mine:
            continue
        ended = [cycle for cycle in mine if not cycle.error]
        same, differing = sum(not cycle.differing for cycle in ended), sum(len(cycle.differing) for cycle in ended)
        kills = sum(len(cycle.kills) for cycle in mine)
        whole = kills - sum(cycle.between for cycle in mine)
        whole_shown = f"{whole} of {kills}" if name != "all" and TARGETS[name].replaced else ""
        shown = (name, kind, kills, whole_shown, f"{len(ended)} of {len(mine)}", f"{same} of {len(ended)}", differing)
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines) + "\n"


def _read(file: Path, seed: int) -> list[Cycle]:
    if not file.is_file():
        return []
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if record["seed"] != seed:
        raise SystemExit(f"{file} holds kills of seed {record['seed']}; give another --results, or --again")
    return [Cycle(**cycle) for cycle in record["cycles"]]


def _write(file: Path, seed: int, done: Sequence[Cycle]) -> None:
    write_atomic(file, json.dumps({"seed": seed, "cycles": [asdict(cycle) for cycle in done]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
