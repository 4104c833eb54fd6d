"""Fuzz the parsers of files from strangers: a case is read, or refused by one clear line, in 10 s of the processor and 2 GB.

python -m benchmarks.fuzz --cases 1000000 --seed 0                  shared out among the parsers, the cheap ones get more
python -m benchmarks.fuzz --parsers suites --only 4711              one case again, with its traceback
python -m benchmarks.fuzz --cases 1000000 --minutes 10              as many as that, the parsers getting as much time each

A mutation fuzzer of our own: a case is a valid file with a few random changes of its bytes or of its structure, made from (seed,
parser, number) alone. Cases run in a process of their own, so that a crash of a library is counted as well.
`benchmarks.fuzz_guided` looks further, with atheris.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import shlex
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from apd.errors import ApdError
from apd.util.text import one_line
from benchmarks.fuzz_parsers import PARSERS, Parser, make_parsers

SECONDS, BYTES = 10.0, 2 * 2**30
"""What a case may take at most, of the processor and of memory; other work on the machine does not count."""
_GIVE_UP = 60.0
"""Seconds after which a process that does not come back from a library is killed."""
_KEPT = 5
"""Faults of each parser that the results describe."""
_STATE = struct.Struct("qqq")
"""Shared with the process that works: the case it is at, how many were accepted, and refused."""


class Hang(BaseException):
    """A case took too long."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if any case crashed, hung or was refused unclearly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cases", type=int, default=1_000_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="for all parsers together; default: no limit"
    )
    parser.add_argument("--parsers", nargs="+", choices=list(PARSERS), default=list(PARSERS), help="all by default")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this case of one parser, with its traceback")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/fuzz.json"))
    asked = parser.parse_args(argv)
    with _folder() as folder:
        parsers = make_parsers(folder, asked.parsers)
        if asked.only is not None:
            return _show(parsers[0], asked.seed, asked.only)
        shares = sum(each.share for each in parsers)
        rows = []
        for each in parsers:
            seconds = 60 * asked.minutes / len(parsers)
            rows.append(_fuzz(each, asked.seed, round(asked.cases * each.share / shares), seconds))
            print(_line(rows[-1]), flush=True)
    found = {
        "command": f"python -m benchmarks.fuzz {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "asked": asked.cases,
        "cases": sum(row["cases"] for row in rows),
        "crashes": sum(row["crashes"] for row in rows),
        "hangs": sum(row["hangs"] for row in rows),
        "python": sys.version.split()[0],
        "parsers": rows,
    }
    asked.results.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['cases']:,} cases: {found['crashes']} crashes, {found['hangs']} hangs")
    return int(found["crashes"] + found["hangs"] > 0)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['parser']}: {row['cases']:,} cases, {row['accepted']:,} read, {row['refused']:,} refused, {row['crashes']} "
        f"crashes, {row['hangs']} hangs; slowest {row['slowest_s']:.2f} s, {row['megabytes']} MB, {row['seconds']:.0f} s"
    )


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory, where there is one: files are written a million times."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="apd-fuzz-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _show(parser: Parser, seed: int, number: int) -> int:
    """Run one case in this process."""
    try:
        print("read:", parser.run(_case(parser, seed, number)))
    except ApdError as refusal:
        print("refused:", refusal)
    return 0


def _case(parser: Parser, seed: int, number: int) -> bytes:
    return parser.make(Random(f"{seed}/{parser.name}/{number}"))


def _fuzz(parser: Parser, seed: int, cases: int, seconds: float) -> dict[str, Any]:
    """Run the cases of a parser, all or as many as there is time for, in as many processes as crashes make necessary."""
    started, faults = time.monotonic(), list[dict[str, Any]]()
    shared, report = mmap.mmap(-1, _STATE.size), Path(tempfile.mkstemp(prefix="apd-fuzz-")[1])
    totals, first = {"accepted": 0, "refused": 0, "megabytes": 0, "slowest_s": 0.0, "crashes": 0, "hangs": 0}, 0
    end = False
    while first < cases and not end:
        shared[:] = _STATE.pack(first, 0, 0)
        process = os.fork()
        if not process:
            try:
                _work(parser, seed, range(first, cases), started + seconds, shared, report)
            finally:
                os._exit(1)  # whatever is raised: the folder is the other process's
        died = _wait(process, shared)
        at, accepted, refused = _STATE.unpack(shared[:])
        totals["accepted"] += accepted
        totals["refused"] += refused
        for text in report.read_text().splitlines():
            row = json.loads(text)
            if "fault" in row:
                totals["hangs" if row["fault"].startswith("Hang") else "crashes"] += 1
                faults.append(row)
            else:
                totals["megabytes"] = max(totals["megabytes"], row["megabytes"])
                totals["slowest_s"] = max(totals["slowest_s"], row["slowest_s"])
        if died:
            totals["hangs" if died == "hang" else "crashes"] += 1
            faults.append({"case": at, "fault": died})
        first, end = at + bool(died), not died
    report.unlink()
    took = round(time.monotonic() - started, 1)
    return {"parser": parser.name, "cases": first, **totals, "seconds": took, "faults": faults[:_KEPT]}


def _wait(process: int, shared: mmap.mmap) -> str | None:
    """Wait for the process that works; say how it died, if it did not come to its end."""
    seen, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return None if status == 0 else f"the process died ({os.waitstatus_to_exitcode(status)})"
        at = _STATE.unpack(shared[:])[0]
        if at != seen:
            seen, since = at, time.monotonic()
        elif time.monotonic() - since > _GIVE_UP:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "hang"
        time.sleep(0.2)


def _work(parser: Parser, seed: int, numbers: range, until: float, shared: mmap.mmap, report: Path) -> None:
    """Run cases in this process until there is no more time; the process ends here."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _limit_memory()
    signal.signal(signal.SIGPROF, _hang)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    accepted = refused = 0
    slowest, done = 0.0, numbers.start
    with open(report, "w") as found:
        for number in numbers:
            if time.monotonic() > until:
                break
            shared[:] = _STATE.pack(number, accepted, refused)
            case, began = _case(parser, seed, number), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                parser.run(case)
                accepted += 1
            except ApdError as refusal:
                refused += 1
                if (problem := unclear(refusal)) is not None:
                    print(json.dumps({"case": number, "fault": problem}), file=found, flush=True)
            except (Exception, Hang) as fault:
                place = traceback.extract_tb(fault.__traceback__)[-1]
                text = f"{type(fault).__name__}: {one_line(fault, 200)} ({Path(place.filename).name}:{place.lineno})"
                print(json.dumps({"case": number, "fault": text}), file=found, flush=True)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest, done = max(slowest, time.process_time() - began), number + 1
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
        print(json.dumps({"megabytes": more // 1024, "slowest_s": round(slowest, 3)}), file=found)
    shared[:] = _STATE.pack(done, accepted, refused)
    found.close()
    os._exit(0)


def _limit_memory() -> None:
    """Let this process take `BYTES` more than it has."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _hang(*_: object) -> None:
    raise Hang(f"more than {SECONDS:g} s of the processor")


def unclear(refusal: ApdError) -> str | None:
    """What is wrong with a refusal, which should be one line of printable text that says something."""
    text = str(refusal)
    if not text.strip() or "\n" in text or "Traceback" in text or " object at 0x" in text:
        return f"an unclear refusal: {one_line(text, 200)}"
    return None


if __name__ == "__main__":
    sys.exit(main())
