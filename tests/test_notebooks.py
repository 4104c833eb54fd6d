"""The notebooks of the documentation run from top to bottom, show what their text says, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_kept_without_outputs(name: str) -> None:
    book = read(name)
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for cell in book.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


# A line at the end of each notebook that fails where its text would be wrong.
SHOWN = {
    "quick_start": "assert answers(zero_shot, x) != answers(zero_shot, x_adv)\n"
    "assert result.worst.accuracy > result.undefended.worst.accuracy\n"
    "assert float((x_adv - x).abs().max()) <= EPS + 1e-6",
    "unlabelled": "assert helped.manifest['data']['unlabelled_images'] == 100\n"
    "assert {row.attack for row in comparison.rows} >= {'clean', 'pgd-10'}\n"
    "assert unlabelled_alone.manifest['data']['train_images'] == 0",
    "evaluating_honestly": "accuracy = {name: score.accuracy for name, score in weak_to_strong.attacks.items()}\n"
    "assert accuracy['pgd-1'] > accuracy['pgd-10'] >= weak_to_strong.worst.accuracy\n"
    "assert hidden.worst.accuracy > weak_to_strong.worst.accuracy + 20 and not hidden.sound\n"
    "assert transferred < hidden.worst.accuracy",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    book = read(name)
    book.cells.append(nbformat.v4.new_code_cell(SHOWN[name]))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    installing = [cell for cell in book.cells if "%pip" in cell.source]
    assert all(cell.outputs == [] for cell in installing), "what is installed is not installed again"
