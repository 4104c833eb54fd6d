"""What a forger may do to a run folder, from one changed byte to all that can be computed anew; for tests and for a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import apd
from apd.attacks.threat import format_eps
from apd.evaluation.result import Accuracy
from apd.evaluation.samples import hash_of_keys
from apd.evaluation.store import digest
from apd.evaluation.summary import per_class
from apd.runs.card import render_card
from apd.runs.folder import Run
from apd.runs.output import summary_files, summary_name
from apd.util.tensors import sha256_of_file


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


def prompts_changed(run: Path) -> None:
    file = run / "prompts.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def prompts_of_another_run(run: Path) -> None:
    file = run / "prompts.safetensors"
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) + 0.1 for name in content.keys()}  # noqa: SIM118
    save_file(tensors, file)
    change(run / "run.json", lambda record: record.update(prompts_sha256=sha256_of_file(file)))


def eps_lowered(run: Path) -> None:
    def lower(summary: dict[str, Any], _: object) -> None:
        eps = summary["eps"] / 2
        summary.update(eps=eps, eps_text=format_eps(eps))

    restate(run, lower)


def attacked_within_less(run: Path) -> None:
    """The attack ran within a quarter of the eps that every file states."""
    eps = 4 * float(json.loads(the_summary(run).read_text())["eps"])
    restate(run, lambda summary, _: summary.update(eps=eps, eps_text=format_eps(eps)))
    restate_records(run, eps=repr(eps))


def flip(summary: dict[str, Any], outcomes: dict[str, Any]) -> None:
    for guesses in outcomes["predictions"].values():
        guesses[:] = outcomes["labels"]


def outcomes_flipped(run: Path) -> None:
    restate(run, flip)


def outcomes_flipped_everywhere(run: Path) -> None:
    restate(run, flip)
    for file in (run / "results").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        last = {(row["id"], row["pixels"]): row for row in rows if "id" in row}
        clean = json.loads(the_summary(run).with_name(the_summary(run).name.replace("summary", "outcomes")).read_text())
        for id_, pixels, label in zip(clean["ids"], clean["pixels"], clean["labels"], strict=True):
            row = {"id": id_, "pixels": pixels, "label": label, "predicted": label, "by": None}
            last[id_, pixels] = row
        kept = [row for row in rows if "id" not in row and "withstood" not in row]
        file.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *last.values()]))


def hard_images_left_out(run: Path) -> None:
    attack = the_attack(run)

    def drop(_: object, outcomes: dict[str, Any]) -> None:
        wrong = [
            i
            for i, (a, b) in enumerate(zip(outcomes["predictions"][attack], outcomes["labels"], strict=True))
            if a != b
        ]
        assert wrong
        lists = [outcomes[key] for key in ("ids", "pixels", "labels")]
        lists += [*outcomes["predictions"].values(), *outcomes["undefended"].values()]
        for each in lists:
            each[:] = [value for i, value in enumerate(each) if i not in wrong]

    restate(run, drop)


def labels_changed(run: Path) -> None:
    attack = the_attack(run)

    def relabel(_: object, outcomes: dict[str, Any]) -> None:
        outcomes["labels"][:] = outcomes["predictions"][attack]

    restate(run, relabel)


def attack_renamed(run: Path) -> None:
    rename_attack(run, "pgd-50")


def rename_attack(run: Path, name: str) -> None:
    attack = the_attack(run)

    def rename(summary: dict[str, Any], outcomes: dict[str, Any]) -> None:
        outcomes["predictions"][name] = outcomes["predictions"].pop(attack)
        outcomes["undefended"][name] = outcomes["undefended"].pop(attack)
        summary["undefended"]["attacks"][name] = summary["undefended"]["attacks"].pop(attack)

    restate(run, rename)


def seed_changed(run: Path) -> None:
    restate(run, lambda summary, _: summary.update(seed=7))


def seed_duplicated(run: Path) -> None:
    """The same outcomes stand there once more, as those of another seed."""
    file = the_summary(run)
    kept = {each: each.read_bytes() for each in (file, file.with_name(file.name.replace("summary-", "outcomes-")))}
    restate(run, lambda summary, _: summary.update(seed=summary["seed"] + 1), card=False)
    for each, content in kept.items():
        each.write_bytes(content)
    write_card(run)


def card_edited(run: Path) -> None:
    stated = json.loads(the_summary(run).read_text())["attacks"][the_attack(run)]["accuracy"]
    card = run / "README.md"
    text = card.read_text()
    assert f"{stated:.1f}" in text
    card.write_text(text.replace(f"| {stated:.1f} |", "| 99.9 |"))


def row_added_to_the_card(run: Path) -> None:
    card = run / "README.md"
    card.write_text(card.read_text() + "\n| imagenet | linf | 4/255 | 0 | 50000 | autoattack | 81.3 |\n")


def config_changed(run: Path) -> None:
    file = run / "config.yaml"
    record = yaml.safe_load(file.read_text())
    record["train"]["epochs"] = 500
    file.write_text(yaml.safe_dump(record, sort_keys=False))


def class_names_permuted(run: Path) -> None:
    change(run / "run.json", lambda record: record["class_names"].reverse())


def encoder_swapped(run: Path) -> None:
    other = another_clip(run)
    change(run / "run.json", lambda record: record["model"].update(source=str(other)))


def encoder_swapped_with_its_hashes(run: Path) -> None:
    other = apd.load_clip(another_clip(run)).info
    hashes = {name: getattr(other, name) for name in ("source", "weights_sha256", "tokenizer_sha256")}
    change(run / "run.json", lambda record: record["model"].update(hashes))


def templates_changed(run: Path) -> None:
    change(run / "run.json", lambda record: record.update(templates=["{} seen by nobody"]))


def checks_edited(run: Path) -> None:
    def improve(record: dict[str, Any]) -> None:
        record["checks"] = [{**check, "passed": True, "value": 0.25} for check in record["checks"]]

    change(the_summary(run), improve)


def unreliable_called_reliable(run: Path) -> None:
    change(the_summary(run), lambda record: record.update(reliable=not record["reliable"]))


def reasons_emptied(run: Path) -> None:
    def empty(record: dict[str, Any]) -> None:
        assert record["unreliable_because"], "only a result that is not reliable has reasons"
        record["unreliable_because"] = []

    change(the_summary(run), empty)


def checks_removed(run: Path) -> None:
    nothing: dict[str, Any] = {"checks": [], "reliable": None, "unreliable_because": []}
    for file in (run / "results").glob("checks-*.json"):
        file.unlink()
    restate(run, lambda summary, _: summary.update(nothing))


def failed_checks_removed(run: Path) -> None:
    """Only the checks that passed are left, and the result is called reliable."""

    def leave(summary: dict[str, Any], _: object) -> None:
        left = [check for check in summary["checks"] if check["passed"] is not False]
        assert len(left) < len(summary["checks"]), "a check must have failed"
        summary.update(checks=left, reliable=True, unreliable_because=[])

    restate(run, leave)


def accuracy_edited(run: Path) -> None:
    change(the_summary(run), lambda record: record["attacks"][the_attack(run)].update(accuracy=99.0))


def control_weakened(run: Path) -> None:
    change(the_summary(run), lambda record: record["undefended"]["worst"].update(accuracy=0.77))


def data_renamed(run: Path) -> None:
    restate(run, lambda summary, _: summary.update(data="imagenet"))


def kept_image_exchanged(run: Path) -> None:
    """An image that the attack made is replaced by a clean one, as if it had been easy to see."""
    file = sorted(run.glob("images/*/clean/*.png"))[0]
    shutil.copyfile(file, file.parent.parent / "adversarial" / file.name)
    other = sorted(run.glob("images/*/clean/*.png"))[-1]
    shutil.copyfile(other, file)


FORGERIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "prompts changed": (prompts_changed, "prompts"),
    "prompts of another run, with their hash": (prompts_of_another_run, "classifier"),
    "eps in the result lowered": (eps_lowered, "records"),
    "attacked within a quarter of the stated eps": (attacked_within_less, "again"),
    "outcomes flipped": (outcomes_flipped, "records"),
    "outcomes flipped in every file": (outcomes_flipped_everywhere, "again"),
    "hard images left out": (hard_images_left_out, "images"),
    "labels changed": (labels_changed, "images"),
    "attack renamed": (attack_renamed, "records"),
    "seed changed": (seed_changed, "records"),
    "outcomes copied under another seed": (seed_duplicated, "records"),
    "figures of the card edited": (card_edited, "card"),
    "figures added to the card": (row_added_to_the_card, "card"),
    "settings changed": (config_changed, "config"),
    "class names permuted": (class_names_permuted, "classifier"),
    "CLIP model swapped": (encoder_swapped, "encoder"),
    "CLIP model swapped, with its hashes": (encoder_swapped_with_its_hashes, "classifier"),
    "templates changed": (templates_changed, "classifier"),
    "health checks edited": (checks_edited, "checks"),
    "health checks removed": (checks_removed, "checks"),
    "failed health checks removed": (failed_checks_removed, "checks"),
    "reasons of an unreliable result emptied": (reasons_emptied, "results"),
    "reliability edited": (unreliable_called_reliable, "results"),
    "accuracy edited": (accuracy_edited, "results"),
    "control weakened": (control_weakened, "results"),
    "data renamed": (data_renamed, "again"),
    "kept image exchanged": (kept_image_exchanged, "kept images"),
}
"""What a forger does to a run, and the finding that notices it."""
