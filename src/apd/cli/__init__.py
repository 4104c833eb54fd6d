"""The command line: thin commands over the Python API. Heavy imports live inside the commands."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from apd.cli import (
    average,
    bench,
    calibrate,
    certify,
    compare,
    demo,
    doctor,
    evaluate,
    explore,
    export,
    imports,
    leaderboard,
    listing,
    precision,
    predict,
    report,
    schema,
    serve,
    train,
    verify,
    wording,
)
from apd.cli.streams import let_go, prepare_streams
from apd.cli.usage import at_home, refuse_empty, unwrapped, wrong_usage
from apd.errors import ApdError
from apd.util.files import storage_error
from apd.util.messages import command_line
from apd.util.text import one_line
from apd.util.trust import FLAG, trust, trust_files
from apd.util.versions import __version__

app = typer.Typer(
    name="apd",
    help="Make a CLIP classifier robust by learning a few prompt vectors, and say honestly how robust it is.",
    epilog="Start with: apd demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    demo.demo,
    train.train,
    evaluate.evaluate,
    predict.predict,
    average.average,
    bench.bench,
    calibrate.calibrate,
    certify.certify,
    wording.wording,
    serve.serve,
    compare.compare,
    precision.precision,
    export.export,
    explore.explore,
    doctor.doctor,
    report.report,
    leaderboard.leaderboard,
    schema.schema,
    verify.verify,
    imports.import_,
    listing.listing,
)
_NAMES: dict[Callable[..., None], str] = {imports.import_: "import", listing.listing: "list"}
for command in _COMMANDS:
    app.command(name=_NAMES.get(command), help=unwrapped(command.__doc__ or ""))(command)


_STOPPED = 130
"""Exit code after Ctrl-C."""


def _version(value: bool) -> None:
    if value:
        print(f"apd {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works before and after the command.")
    ] = False,
    trust_code: Annotated[
        bool,
        typer.Option(
            FLAG,
            help="Import code (package.module:name) that only a file names, such as a stranger's suite or run folder; works "
            "before and after the command.",
        ),
    ] = False,
) -> None:
    """Options before the command; `main` has taken both flags already."""


def _switches() -> set[str]:
    """The options of all commands that take no value."""
    commands = getattr(typer.main.get_command(app), "commands", {}).values()
    options = [option for each in commands for option in each.params if getattr(option, "is_flag", False)]
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def main() -> None:
    """Run the command line; every error is one line, and the exit code says which kind it is.

    Exit codes: 0 done; 1 failed; 2 wrong usage or input; 3 not reliable (--strict); 130 stopped with Ctrl-C.
    """
    prepare_streams()
    try:
        _run()
    finally:
        for stream in ("stdout", "stderr"):
            let_go(stream)


def _run() -> None:
    debug = "--debug" in sys.argv[1:]
    arguments = at_home([argument for argument in sys.argv[1:] if argument not in ("--debug", FLAG)])
    trust(arguments)
    if FLAG in sys.argv[1:]:
        trust_files()
    try:
        try:
            refuse_empty(arguments, _switches)
            with command_line():
                code = app(args=arguments, prog_name="apd", standalone_mode=False)
        finally:
            sys.stdout.flush()
        sys.exit(_ending() if code == _STOPPED else code or 0)
    except KeyboardInterrupt:
        sys.exit(_ending())
    except BrokenPipeError:  # whoever read our output has gone
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.exit(_complain(error))


def _ending() -> int:
    """From now on another Ctrl-C ends the process at once: an exception while Python exits would show a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _STOPPED


def _complain(error: Exception) -> int:
    """One line on standard error, and the exit code."""
    known = storage_error(error) if isinstance(error, OSError) else error
    if isinstance(known, ApdError):
        text, code = one_line(known), known.exit_code
    elif (usage := wrong_usage(error)) is not None:
        text, code = usage, 2
    else:
        reason = one_line(error) or "no reason given"
        text, code = f"{type(error).__name__}: {reason} (--debug shows the traceback)", 1
    with suppress(OSError):
        if text:
            print(f"error: {text}", file=sys.stderr)
    return code
