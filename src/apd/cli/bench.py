"""`apd bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import AsJson, quiet_stdout, say
from apd.util.progress import counted
from apd.util.text import to_json


def bench(
    suite: Annotated[Path, typer.Argument(help="Suite file (YAML): data, methods, and blocks that combine them.")],
    output: Annotated[Path | None, typer.Option(help="Folder for all output. (default: runs/bench-SUITE)")] = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Parallel runs. (default: one per GPU, or one)", show_default=False)
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs per run. (default: 1 if there are any)", show_default=False),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the suite's models and data.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Method that all are compared with. (default: the suite's; with --table-only the last one)",
            show_default=False,
        ),
    ] = None,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Only rewrite tables and plots from the outcomes in the output folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite of trainings and evaluations, and write tables. Finished runs are skipped.

    Examples:
      apd bench suites/quick.yaml --output runs/quick
      apd bench suites/testbed.yaml --workers 2 --output runs/testbed
      APD_DATA=data apd bench suites/full.yaml --engine ray --workers 8 --output runs/full
      apd bench suites/testbed.yaml --output runs/testbed --table-only --against trades
    """
    from apd.bench import bench as run_bench
    from apd.bench import find_machine, load_suite, write_tables

    folder = output or Path("runs") / f"bench-{suite.stem}"
    failures: dict[str, str] = {}
    with quiet_stdout():
        if table_only:
            write_tables(folder, against)
        else:
            wanted = load_suite(suite, root=root, against=against)  # before a cluster is started
            machine = find_machine(engine, workers, gpus)
            try:
                failures = run_bench(wanted, folder, machine=machine)
            except KeyboardInterrupt:
                say("\nStopped. Run the same command again to resume, or add --table-only to see the results so far.")
                raise
    if as_json:
        print(_json(folder, failures))
    else:
        _show(folder)
    if failures:
        say(_listed(failures))
        raise typer.Exit(1)
    say(f"Next: look at {folder}/table.md; single runs are in {folder}/runs, for apd predict and apd evaluate.")


def _json(folder: Path, failures: dict[str, str]) -> str:
    """The rows of results.csv, and the error of each run that failed."""
    from apd.bench.report.rows import read_bench, rows

    plan, outcomes = read_bench(folder)
    found = {"suite": plan.suite, "output": str(folder), "rows": list(rows(plan, outcomes)), "failures": failures}
    return to_json(found)


def _show(folder: Path) -> None:
    """Draw the tables in the terminal; ``table.md`` has them with published numbers, where there are any."""
    from rich.console import Console

    from apd.bench.report.rows import read_bench
    from apd.bench.report.tables import make_tables
    from apd.bench.report.terminal import drawn

    console = Console()
    console.print(drawn(make_tables(*read_bench(folder)), console.width))


def _listed(failures: dict[str, str]) -> str:
    lines = [f"  {label}: {error}" for label, error in failures.items()]
    hint = "Next: fix these errors, then run the same command: only the failed runs are repeated."
    return "\n".join([f"{counted(len(failures), 'run')} failed:", *lines, hint])
