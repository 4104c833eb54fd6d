"""Speed, as counted operations and as ratios measured side by side in one run; see docs/benchmarks.md.

python -m benchmarks                  every suite; hours on a CPU, and resumable row by row
python -m benchmarks --quick          few sizes and rounds; minutes
python -m benchmarks --suite flops    operations per training step, counted: the same on every machine; minutes
python -m benchmarks --plan           what would be measured, and how long it should take
python -m benchmarks --profile        where a step spends its time
python -m benchmarks --page           plots, and the figures of docs/benchmarks.md, from the JSON files
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.cases import Case, Options, Results, run

SUITES = {
    "flops": "benchmarks.flops",
    "step": "benchmarks.step_rows",
    "switches": "benchmarks.switches",
    "evaluation": "benchmarks.evaluation",
    "startup": "benchmarks.startup",
    "growth": "benchmarks.growth",
    "throughput": "benchmarks.throughput",
    "unlabelled": "benchmarks.unlabelled",
    "serve": "benchmarks.serve",
    "predict": "benchmarks.predict",
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES), help="all of them by default")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="rows, such as 'fap-*-b4-*'")
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds")
    parser.add_argument(
        "--plan", action="store_true", help="only say what would be measured and how long it should take"
    )
    parser.add_argument("--again", action="store_true", help="measure rows that are known already, too")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--geometry", default="vit-b-32", help="of the main rows")
    parser.add_argument("--testbed", type=Path, help="folder of a real small CLIP with images, for the evaluation")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--label", metavar="NAME", help="of this machine: its rows go to SUITE-NAME.json, beside others'"
    )
    parser.add_argument("--profile", action="store_true", help="write tables of where a step spends its time, and stop")
    parser.add_argument("--page", action="store_true", help="remake plots and docs/benchmarks.md, and stop")
    a = parser.parse_args(argv)
    options = Options(
        quick=a.quick,
        device=torch.device(a.device),
        geometry=a.geometry,
        results=a.results,
        testbed=a.testbed,
        again=a.again,
        only=tuple(a.only),
    )
    if a.profile:
        from benchmarks.profile import profile

        profile(options)
    elif not a.page:
        suffix = device_suffix(options.device) + (f"-{a.label}" if a.label else "")
        for suite in a.suite:
            results = Results(options.results / f"{suite}{suffix}.json", options)
            run(suite_cases(suite)(options, results), results, plan=a.plan)
    if a.page:
        from benchmarks.page import write_page

        write_page(options.results, Path("docs"))


def device_suffix(device: torch.device) -> str:
    """What a file's name says of the device: nothing for the CPU."""
    return "" if device.type == "cpu" else f"-{device.type}"


def suite_cases(suite: str) -> Callable[[Options, Results], Iterator[Case]]:
    """The cases of a suite; imported only here, so that ``--help`` is quick."""
    found: Callable[[Options, Results], Iterator[Case]] = import_module(SUITES[suite]).cases
    return found


if __name__ == "__main__":
    main()
