"""`apd leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import AsJson, say
from apd.errors import InputError
from apd.util.files import write_atomic
from apd.util.outputs import check_output_file
from apd.util.text import to_json

FORMS = (".md", ".html", ".json")


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold evaluated runs.")],
    data: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    attack: Annotated[str | None, typer.Option(help="Only this attack.")] = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write it to this file: .md, .html or .json, by its name.")
    ] = None,
) -> None:
    """Rank all results below some folders, in one table for each set that can be compared.

    Results stand together if data, images, threat model and attack are the same. Where outcomes were kept, each is
    compared with the best image by image. What is not reliable, or missing, is marked.

    Examples:
      apd leaderboard runs evaluations
      apd leaderboard runs --attack autoattack --output board.html
      apd leaderboard runs --json
    """
    if output is not None:
        if output.suffix not in FORMS:
            raise InputError(f"{output} has none of the endings {', '.join(FORMS)}, which choose the format.")
        check_output_file(output, "board.html")
    from apd.evaluation.board import leaderboard as collect
    from apd.evaluation.board_text import to_html, to_markdown, to_terminal

    board = collect(folders, data=data, attack=attack)
    text = to_json(board.to_dict()) + "\n"
    if output is not None:
        made = {".md": to_markdown, ".html": to_html}.get(output.suffix)
        write_atomic(output, text if made is None else made(board))
        say(f"Written to {output}")
    if as_json:
        print(text, end="")
        return
    from rich.console import Console

    Console().print(to_terminal(board))
