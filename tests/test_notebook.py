"""What a person sees in a notebook, with a real kernel: short reprs, one-line errors, a progress display."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CELLS = [
    "import apd\nfrom apd.util.progress import Count, Progress\ndata = apd.load_data('digits', shots=1)",
    "data",
    "apd.load_data('digitss')",
    "apd.errors.ApdError('two\\nlines \\x1b[31m').__class__; raise apd.ApdError('two\\nlines \\x1b[31m')",
    "with Progress('counting', Count(3, 'steps'), keep=True) as shown:\n"
    "    for _ in range(3):\n        shown.count.advance()",
    "with Progress('vanishing', Count(3, 'steps')) as shown:\n    shown._draw()",
    "%xmode Verbose\napd.load_data('digitss')",
]


def test_a_notebook(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    nbclient.NotebookClient(book, timeout=120, allow_errors=True, resources={"metadata": {"path": tmp_path}}).execute()
    _, data, unknown, failed, bar, gone, verbose = (cell.outputs for cell in book.cells)
    shown = data[0].data
    assert "ten" not in shown["text/plain"] and len(shown["text/plain"]) < 300 and "<table>" in shown["text/html"]
    assert unknown[0].ename == "InputError" and len(unknown[0].traceback) == 1
    assert unknown[0].traceback[0].startswith("InputError: ") and "digits" in unknown[0].traceback[0]
    assert failed[0].traceback == ["ApdError: two lines \\x1b[31m"]
    assert "3 of 3 steps" in bar[0].data["text/plain"] and "white-space:pre" in bar[0].data["text/html"]
    assert "counting" in bar[0].data["text/html"] and bar[0].data["text/plain"].count("\n") <= 1
    assert len(bar) == len(gone) == 1 and gone[0].data == {"text/plain": "", "text/html": ""}
    assert "load_data" in "".join(verbose[-1].traceback) and len("".join(verbose[-1].traceback)) > 500
