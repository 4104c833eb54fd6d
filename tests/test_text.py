"""Names from outside are shown without doing anything to a terminal, a table or a shell."""

from __future__ import annotations

import shlex

import pytest

from apd.util.text import first_of, markdown, printable, quoted


@pytest.mark.parametrize("bad", ["\x1b[31m", "\x9b31m", "\r", "\n", "\u2028", "\u202e", "\x00", "\udcff", "\t"])
def test_what_moves_a_terminal_is_written_as_an_escape(bad: str) -> None:
    shown = printable(f"cat{bad}dog")
    assert shown.isprintable() and shown.isascii() and "\\" in shown
    assert shown.startswith("cat") and shown.endswith("dog")


@pytest.mark.parametrize("name", ["piñata", "猫", "\u0645\u06cc\u200c\u062e", "snow_leopard", "a b"])
def test_ordinary_names_stay(name: str) -> None:
    assert printable(name) == name


def test_markdown_and_shell() -> None:
    shown = markdown("<script>a|b`c*\n")
    assert "<" not in shown and "\n" not in shown
    assert all(f"\\{mark}" in shown for mark in "|`*")
    assert shlex.split(quoted("it's a; rm -rf")) == ["it's a; rm -rf"]


def test_first_of_escapes_too() -> None:
    assert first_of(["a\nb", "c"], "classes") == "a\\nb, c (2 classes)"
