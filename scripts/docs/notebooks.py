"""Notebooks as pages: text and code as they stand, and the outputs that the file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def notebook_page(text: str, name: str) -> str:
    """A notebook's content as Markdown, with a link to the notebook itself."""
    cells = json.loads(text)["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    download = f"[Download this notebook]({name}){{ download }}"
    # After the title, which is the first line of the first cell.
    title, _, rest = parts[0].partition("\n") if parts else ("# Notebook", "", "")
    return "\n\n".join([title, download, rest.strip(), *parts[1:]]) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        yield source
    elif cell["cell_type"] == "code" and source:
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    """One output, in the richest form that a page can show."""
    data = output.get("data", {})
    if output["output_type"] == "stream":
        yield _plain(output["text"])
    elif "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        words = "".join(data.get("text/plain", "output of the cell above"))
        yield f'<img alt="{words.replace(chr(34), "").replace("<", "").replace(">", "")}" src="data:image/png;base64,{picture}">'
    elif "text/html" in data:
        yield f'<div class="output">\n{"".join(data["text/html"]).strip()}\n</div>'
    elif "text/plain" in data:
        yield _plain(data["text/plain"])


def _plain(text: list[str] | str) -> str:
    shown = "".join(text).strip("\n")
    return f"```text\n{shown}\n```" if shown else ""
