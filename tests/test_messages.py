"""Messages go through `logging`: printed on standard error for a person, left to a program that has logging of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import apd
from apd.models import DualEncoder
from apd.util.messages import HANDLER, LOGGER, command_line, get_logger, speaking

from .command_line import Cli

log = get_logger("apd.test")


@contextmanager
def unconfigured() -> Iterator[None]:
    """Logging as in a program that does nothing about it; pytest gives every test a handler on the root logger."""
    handlers, logging.root.handlers = logging.root.handlers, []
    try:
        yield
    finally:
        logging.root.handlers = handlers


def state() -> tuple[object, ...]:
    return list(LOGGER.handlers), LOGGER.level, LOGGER.propagate


def test_a_call_from_python_prints_plain_lines_and_leaves_no_handler(capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    with unconfigured(), speaking():
        log.info("one\x1b[31m [bold] %s\ntwo")
        with speaking():
            log.warning("three")
        log.debug("unseen")
    log.info("afterwards")
    assert state() == before and HANDLER not in LOGGER.handlers
    assert capsys.readouterr() == ("", "one\\x1b[31m [bold] %s\ntwo\nWarning: three\n")


def test_quiet_is_quiet_within_and_for_this_call_only(capsys: pytest.CaptureFixture[str]) -> None:
    with unconfigured(), speaking(quiet=True):
        with speaking():
            log.warning("within")
        log.info("quiet")
    assert capsys.readouterr() == ("", "")
    with unconfigured(), speaking():
        log.info("again")
    assert capsys.readouterr().err == "again\n"


def test_a_level_that_a_program_has_set_is_kept(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "apd")
    with unconfigured(), speaking():
        log.info("info")
        log.warning("warning")
    assert capsys.readouterr().err == "Warning: warning\n"


def test_a_program_with_a_handler_gets_records_and_we_print_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = state()
    with speaking():
        log.info("below the root logger's level")
        log.warning("a \x1b name")
        assert HANDLER not in LOGGER.handlers
    assert state() == before and capsys.readouterr() == ("", "")
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [("apd.test", "WARNING", "a \x1b name")]


def test_the_command_line_prints_each_message_once_whatever_the_root_logger_does(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with command_line(), speaking():
        log.info("once")
    assert capsys.readouterr().err == "once\n" and not caplog.records
    assert HANDLER not in LOGGER.handlers


def test_python_shows_plain_lines_unless_quiet_or_in_a_program_with_a_log(
    shallow: DualEncoder,
    colours: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = apd.load_data(colours, shots=2)

    def shown(name: str, **more: Any) -> list[str]:
        output = tmp_path / name
        run = apd.train(shallow, data, method="vlp", epochs=1, device="cpu", output=output, **more)
        apd.evaluate_run(run.path, attacks="clean", limit=4, checks=False, device="cpu", **more)
        out, err = capfd.readouterr()
        assert out == ""
        return err.splitlines()

    with unconfigured():
        epoch, inputs, sample, *_ = shown("default")
        assert epoch.startswith("epoch 1: ") and inputs.startswith("colours: ") and sample.startswith("4 of ")
        assert shown("quiet", quiet=True) == []
    assert shown("logged") == [] and not caplog.records, "the root logger's level is warning"
    caplog.set_level(logging.INFO)
    assert shown("logged at info") == []
    assert {record.name for record in caplog.records} >= {"apd.training", "apd.evaluation"}


def test_commands_leave_logging_as_it_was(cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    before = state()
    assert "Next: apd train" in cli("list", "attacks").err
    assert state() == before and not caplog.records
