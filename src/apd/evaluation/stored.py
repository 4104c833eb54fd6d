"""Evaluations as a run folder keeps them: the summary, and beside it what became of each image.

``RUN/results/summary-NAME.json`` is `Result.to_dict`; ``outcomes-NAME.json`` holds ids, fingerprints of pixels, labels and
predicted classes of the same images, so that two runs can be compared image by image without the model or the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.evaluation.result import Accuracy, Result
from apd.evaluation.store import Key
from apd.runs.folder import Run
from apd.runs.manifest import RESULT_WAY_OUT, read_result
from apd.runs.output import SUMMARY, Apart, summary_files, summary_name
from apd.util.files import AnyPath, read_json, user_path, write_atomic
from apd.util.json_shape import COUNT, TEXT, Each, Table, check_shape
from apd.util.text import quoted, to_json

_OUTCOMES = "outcomes-"
_OUTCOMES_SHAPE = {
    **dict.fromkeys(("ids", "pixels", "class_names"), Each(TEXT)),
    "labels": Each(COUNT),
    "predictions": Table(Each(COUNT)),
    "undefended": (None, Table(Each(COUNT))),
}


@dataclass(frozen=True)
class Outcomes:
    """What became of each image of an evaluation.

    Args:
        ids: one per image.
        pixels: fingerprints of the images as the model saw them.
        labels: right classes.
        class_names: what labels and predictions stand for.
        predictions: predicted classes under ``clean`` and each attack; the clean one where that is wrong already.
        undefended: predictions of the zero-shot control; None where there was none.
    """

    ids: tuple[str, ...]
    pixels: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    predictions: Mapping[str, tuple[int, ...]]
    undefended: Mapping[str, tuple[int, ...]] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> list[Key]:
        """Id, pixels and label: what makes an image the same image."""
        return list(zip(self.ids, self.pixels, self.labels, strict=True))

    def right(self, attack: str, *, undefended: bool = False) -> list[bool]:
        """Which images are right under ``clean``, one attack, or the ``worst`` of all (clean included).

        Args:
            attack: its name.
            undefended: take the zero-shot control instead.
        """
        predictions = self.undefended if undefended else self.predictions
        assert predictions is not None
        names = list(predictions) if attack == "worst" else [attack]
        guesses = zip(*(predictions[name] for name in names), strict=True)
        return [all(guess == label for guess in each) for each, label in zip(guesses, self.labels, strict=True)]


@dataclass(frozen=True)
class Stored:
    """An evaluation that a run folder keeps.

    Args:
        file: the summary.
        summary: `Result.to_dict`.
        outcomes: None where they were not kept, or are not those of the summary.
    """

    file: Path
    summary: Mapping[str, Any]
    outcomes: Outcomes | None


def save(run: Run, result: Result) -> Path:
    """Keep a result in the run: summary, outcomes of its images, model card.

    Returns:
        The summary's file.
    """
    file = run.save_result(result.to_dict(), summary_name(result.to_dict(), _apart(run.results, result)))
    _write_outcomes(file, result)
    return file


def write_result(results: Path, result: Result) -> Path:
    """Keep a result in a folder of results that belongs to no run.

    Returns:
        The summary's file.
    """
    file = results / summary_name(result.to_dict(), _apart(results, result))
    write_atomic(file, to_json(result.to_dict()) + "\n")
    _write_outcomes(file, result)
    return file


def _apart(results: Path, result: Result) -> Apart | None:
    """What tells a result from another one that has its name: of another folder ``photos``, none of whose images is here.

    Images of which some have changed are the same data set, and their old result is replaced.
    """
    place = results / summary_name(result.to_dict())
    try:
        if place.is_file() and read_result(place)["attacks"].keys() != result.attacks.keys():
            return "attacks"
        known = read_outcomes(place)
    except InputError:  # damaged, and replaced
        return None
    own = zip(result.ids, result.pixels, result.labels, strict=True)
    return "images" if known is not None and not {*known.keys}.intersection(own) else None


def _write_outcomes(file: Path, result: Result) -> None:
    kept = Outcomes(
        result.ids,
        result.pixels,
        result.labels,
        result.class_names,
        result.predictions,
        result.undefended_predictions,
    )
    write_atomic(outcomes_beside(file), to_json(asdict(kept), indent=None) + "\n")


def stored_in(path: AnyPath) -> list[Stored]:
    """Read all evaluations of a run folder, or of a folder that `apd evaluate --classifier` has written.

    Raises:
        InputError: another folder, an unfinished run, a damaged file.
    """
    folder = user_path(path)
    if is_kept(folder):
        return [read_stored(file) for file in summary_files(folder / "results")]
    return load_stored(Run.open(path))


def is_kept(folder: Path) -> bool:
    """Whether a folder holds evaluations of a classifier that is not a run."""
    is_run = (folder / "run.json").is_file()
    return (
        (folder / "classifier.json").is_file() and (folder / "results").is_dir() and not is_run
    )  # an export has no results


def how_to_evaluate(path: AnyPath) -> str:
    """The command that evaluates what a folder is of."""
    return (
        "apd evaluate --classifier … (or --model …), as before"
        if is_kept(user_path(path))
        else f"apd evaluate {quoted(path)}"
    )


def load_stored(run: Run) -> list[Stored]:
    """Read all evaluations of a run, in the order of their files' names.

    Raises:
        InputError: a damaged file.
    """
    return [read_stored(file) for file in summary_files(run.results)]


def read_stored(file: Path) -> Stored:
    """Read a summary, and the outcomes beside it if they are its own.

    Raises:
        InputError: a damaged file.
    """
    summary = read_result(file)
    summary = {"corruption": None, "skipped_images": [], "n_available": summary["n"], **summary}  # older ones lack them
    outcomes = read_outcomes(file)
    return Stored(file, summary, outcomes if outcomes is not None and _agrees(outcomes, summary) else None)


def read_outcomes(file: Path) -> Outcomes | None:
    """Read what became of each image of the evaluation with this summary; None where that was not kept.

    Raises:
        InputError: a damaged file.
    """
    if not outcomes_beside(file).is_file():
        return None
    record = read_json(outcomes_beside(file), RESULT_WAY_OUT)
    check_shape(record, _OUTCOMES_SHAPE, outcomes_beside(file), RESULT_WAY_OUT)
    try:
        return _outcomes(record)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(outcomes_beside(file), error) from error


def outcomes_beside(file: Path) -> Path:
    """The file of what became of each image, beside the summary of the same evaluation."""
    return file.with_name(_OUTCOMES + file.name.removeprefix(SUMMARY))


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} is damaged ({error}); {RESULT_WAY_OUT}.")


def _outcomes(record: Mapping[str, Any]) -> Outcomes:
    lists = {key: tuple(record[key]) for key in ("ids", "pixels", "labels", "class_names")}
    own, other = record["predictions"], record["undefended"]
    rows = [lists["ids"], lists["pixels"], lists["labels"], *own.values(), *(other or {}).values()]
    if len(set(map(len, rows))) != 1 or "clean" not in own or (other is not None and own.keys() != other.keys()):
        raise ValueError("ids, pixels, labels and predictions differ in number")
    if any(not 0 <= label < len(lists["class_names"]) for row in rows[2:] for label in row):
        raise ValueError("a label or a prediction is not the number of a class")
    return Outcomes(**lists, predictions=as_tuples(own), undefended=None if other is None else as_tuples(other))


def as_tuples(predictions: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Predictions by attack, which nobody can change by accident."""
    return {attack: tuple(guesses) for attack, guesses in predictions.items()}


def _agrees(outcomes: Outcomes, summary: Mapping[str, Any]) -> bool:
    """Whether the accuracies are those of these outcomes: a summary may be newer, or written by hand."""
    expected = {name: score["accuracy"] for name, score in summary["attacks"].items()}
    expected |= {"clean": summary["clean"], "worst": summary["worst"]["accuracy"]}
    names = {*outcomes.predictions, "worst"}
    return names == set(expected) and all(
        Accuracy.of(outcomes.right(name)).accuracy == expected[name] for name in names
    )
