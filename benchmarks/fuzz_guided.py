"""Fuzz the same parsers as `benchmarks.fuzz`, guided by the lines that a case reaches: by atheris, that is by libFuzzer.

python -m benchmarks.fuzz_guided --minutes 20                       shared equally among the parsers
python -m benchmarks.fuzz_guided --parsers suites --again FILE      one case again, with its traceback

Cases are those of `benchmarks.fuzz`, and byte-wise changes of every case so far that reached new lines of ``apd``. libFuzzer
ends at the first fault, so each parser runs in a process of its own, and its fault is kept as a file.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

SECONDS, MEGABYTES = 10, 2048
"""What a case may take at most."""
_LIBRARIES = 500
"""Megabytes that a process holds before the first case, generously."""
LONGEST = 4096
"""Bytes of a case."""
_SEEDS = 100
_STATISTICS = {
    "number_of_executed_units": "cases",
    "new_units_added": "kept",
    "slowest_unit_time_sec": "slowest_s",
    "peak_rss_mb": "megabytes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if any case crashed, hung or was refused unclearly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_guided", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=20, help="for all parsers together")
    parser.add_argument("--parsers", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run this case of one parser, with its traceback")
    parser.add_argument("--faults", type=Path, default=Path("runs/fuzz"), help="folder for cases that are faults")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/fuzz-guided.json"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is missing: pip install -e '.[fuzz]' --constraint constraints.txt")
    if asked.work is not None or asked.again is not None:
        _work(asked)
        return 0
    names = asked.parsers or list(importlib.import_module("benchmarks.fuzz_parsers").PARSERS)
    rows = []
    for name in names:
        rows.append(_guided(name, 60 * asked.minutes / len(names), asked))
        print(json.dumps(rows[-1]), flush=True)
    of = f" --parsers {shlex.join(asked.parsers)}" if asked.parsers else ""
    command = f"python -m benchmarks.fuzz_guided --minutes {asked.minutes:g}{of} --seed {asked.seed}"
    cases, faults = sum(row["cases"] for row in rows), sum(bool(row["fault"]) for row in rows)
    found = {"command": command, "cases": cases, "faults": faults, "python": sys.version.split()[0], "parsers": rows}
    asked.results.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{cases:,} cases, {faults} of {len(rows)} parsers with a fault")
    return int(faults > 0)


def _guided(name: str, seconds: float, asked: argparse.Namespace) -> dict[str, Any]:
    """Run libFuzzer on a parser in a process of its own, and read what it prints at its end."""
    asked.faults.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.fuzz_guided", "--parsers", name, "--work", str(seconds)]
    command += ["--seed", str(asked.seed), "--faults", str(asked.faults)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    counts = {ours: int(_last(rf"stat::{theirs}:\s+(\d+)", done.stderr) or 0) for theirs, ours in _STATISTICS.items()}
    # "cov" counts edges that were reached: the larger, the more of the parser was seen.
    reached = int(_last(r"cov: (\d+)", done.stderr) or 0)
    fault = None
    if done.returncode != 0:
        case = _last(r"Test unit written to (\S+)", done.stderr)
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"the process ended with {done.returncode}"]
        fault = {"case": case, "output": [line for line in lines if "stat::" not in line][-20:]}
    return {"parser": name, **counts, "edges": reached, "fault": fault}


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return found[-1] if found else None


def _work(asked: argparse.Namespace) -> None:
    """Run one parser in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["apd"]):
        from apd.errors import ApdError
        from benchmarks.fuzz import unclear
        from benchmarks.fuzz_parsers import make_parsers

    def one(case: bytes) -> None:
        try:
            parser.run(case)
        except ApdError as refusal:
            if (problem := unclear(refusal)) is not None:
                raise AssertionError(problem) from refusal

    with tempfile.TemporaryDirectory(prefix="apd-fuzz-") as place:
        (parser,) = make_parsers(Path(place), asked.parsers)
        if asked.again is not None:
            one(asked.again.read_bytes())
            return
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        for number in range(_SEEDS):
            (corpus / str(number)).write_bytes(parser.make(Random(f"{asked.seed}/{parser.name}/{number}")))
        limits = [
            f"-max_total_time={round(asked.work)}",
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEGABYTES + _LIBRARIES}",
        ]
        kept = [f"-artifact_prefix={asked.faults}/{asked.parsers[0].replace(' ', '-')}-", "-print_final_stats=1"]
        options = [*limits, *kept, f"-max_len={LONGEST}", f"-seed={asked.seed}"]

        def change(case: bytes, longest: int, number: int) -> bytes:
            # Bytes alone rarely change a valid JSON or YAML file into another.
            fresh = number % 2 == 0
            return parser.make(Random(number))[:longest] if fresh else atheris.Mutate(case, longest)

        atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
