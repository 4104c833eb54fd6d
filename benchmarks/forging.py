"""How files of a run folder are changed so that all which can be computed agrees with the change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from apd.evaluation.result import Accuracy
from apd.evaluation.samples import hash_of_keys
from apd.evaluation.store import digest
from apd.evaluation.summary import per_class
from apd.runs.card import render_card
from apd.runs.folder import Run
from apd.runs.output import summary_files, summary_name


def change(file: Path, to: Callable[[Any], None]) -> None:
    record = json.loads(file.read_text())
    to(record)
    file.write_text(json.dumps(record))


def the_summary(run: Path) -> Path:
    """The summary of the run's only evaluation, under one attack."""
    (file,) = (run / "results").glob("summary-*.json")
    return file


def the_attack(run: Path) -> str:
    (name,) = json.loads(the_summary(run).read_text())["attacks"]
    return str(name)


def the_index(run: Path) -> Path:
    (file,) = run.glob("images/*/index.json")
    return file


def another_clip(run: Path) -> Path:
    """The run's CLIP model with other weights."""
    source = json.loads((run / "run.json").read_text())["model"]["source"]
    built_in = Path(str(files("apd"))) / "assets" / source
    place = shutil.copytree(built_in if built_in.is_dir() else source, run.parent / "other")
    for file in place.glob("*.safetensors"):
        weights = {
            name: value * 1.02 if value.is_floating_point() else value for name, value in load_file(file).items()
        }
        save_file(weights, file, {"format": "pt"})
    return place


def restate(run: Path, to: Callable[[dict[str, Any], dict[str, Any]], None], *, card: bool = True) -> None:
    """Change an evaluation, and make all that a forger can compute agree with it: accuracies, hashes, names, card."""
    file = the_summary(run)
    beside = file.with_name(file.name.replace("summary-", "outcomes-"))
    summary, outcomes = json.loads(file.read_text()), json.loads(beside.read_text())
    to(summary, outcomes)
    labels, predictions = outcomes["labels"], outcomes["predictions"]

    def score(*names: str) -> dict[str, Any]:
        rows = [[guess == label for guess, label in zip(predictions[n], labels, strict=True)] for n in names]
        return Accuracy.of([all(each) for each in zip(*rows, strict=True)]).model_dump(mode="json")

    summary["clean"], summary["clean_interval"] = score("clean").values()
    summary["attacks"] = {
        name: {**old, **score(name)}
        for name, old in zip([n for n in predictions if n != "clean"], summary["attacks"].values(), strict=True)
    }
    summary["worst"], summary["n"] = score(*predictions), len(labels)
    classes = per_class(labels, predictions, outcomes["class_names"])
    summary["per_class"] = {name: scores.model_dump() for name, scores in classes.items()}
    summary["images_sha256"] = hash_of_keys(list(zip(outcomes["ids"], outcomes["pixels"], labels, strict=True)))
    for old, record in ((file, summary), (beside, outcomes)):
        old.unlink()
        prefix = old.name.partition("-")[0]
        old.with_name(summary_name(summary).replace("summary", prefix, 1)).write_text(json.dumps(record))
    if card:
        write_card(run)


def write_card(run: Path) -> None:
    """Write the model card that the results give."""
    found = Run.open(run)
    results = [json.loads(file.read_text()) for file in summary_files(found.results)]
    (run / "README.md").write_text(render_card(run, found.manifest, found.config, results))


def restate_records(run: Path, **values: str) -> None:
    """Change what the records of attacks say they depend on, and the hash of it in their names."""
    for file in (run / "results").glob("*.jsonl"):
        first, _, rest = file.read_text().partition("\n")
        record = json.loads(first)
        about = record["circumstances"]
        if about["attack"] != "clean":
            old, about = digest(about), {**about, **values}
            file.unlink()
            renamed = file.with_name(file.name.replace(old, digest(about)))
            renamed.write_text(json.dumps({**record, "circumstances": about}) + f"\n{rest}")


def hard_images(run: Path, outcomes: dict[str, Any]) -> set[int]:
    guesses = outcomes["predictions"][the_attack(run)]
    wrong = {i for i, (a, b) in enumerate(zip(guesses, outcomes["labels"], strict=True)) if a != b}
    assert wrong
    return wrong


def take(outcomes: dict[str, Any], chosen: Sequence[int]) -> None:
    lists = [outcomes[key] for key in ("ids", "pixels", "labels")]
    lists += [*outcomes["predictions"].values(), *(outcomes["undefended"] or {}).values()]
    for each in lists:
        each[:] = [each[i] for i in chosen]
