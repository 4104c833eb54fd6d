"""What a forger may do to a run folder, from one changed byte to all that can be computed anew; for tests and for a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import apd
from apd.attacks.threat import format_eps
from apd.evaluation.result import Accuracy
from apd.util.tensors import sha256_of_file
from benchmarks.forging import (
    another_clip,
    change,
    hard_images,
    restate,
    restate_records,
    take,
    the_attack,
    the_index,
    the_summary,
    write_card,
)


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


def hard_images_left_out(run: Path, *, unreadable: bool = False) -> None:
    def drop(summary: dict[str, Any], outcomes: dict[str, Any]) -> None:
        wrong = hard_images(run, outcomes)
        if unreadable:
            summary["skipped_images"] = [outcomes["ids"][i] for i in wrong]
        take(outcomes, [i for i in range(len(outcomes["ids"])) if i not in wrong])

    restate(run, drop)


def hard_images_called_unreadable(run: Path) -> None:
    hard_images_left_out(run, unreadable=True)


def easy_images_repeated(run: Path) -> None:
    def repeat(_: object, outcomes: dict[str, Any]) -> None:
        whole = range(len(outcomes["ids"]))
        take(outcomes, [*whole, *(set(whole) - hard_images(run, outcomes))])

    restate(run, repeat)


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


def control_weakened_everywhere(run: Path) -> None:
    """Zero-shot CLIP is said to know nothing, in every file, and the check that compares with it agrees."""

    def weaken(summary: dict[str, Any], outcomes: dict[str, Any]) -> None:
        n, classes = len(outcomes["labels"]), len(outcomes["class_names"])
        nothing = Accuracy.of([False] * n).model_dump(mode="json")
        for guesses in outcomes["undefended"].values():
            guesses[:] = [(label + 1) % classes for label in outcomes["labels"]]
        control = summary["undefended"]
        control.update(clean=0.0, clean_interval=nothing["interval"], worst=nothing)
        for score in control["attacks"].values():
            score.update(nothing)
        for check in summary["checks"]:
            if check["name"] == "undefended":
                check.update(value=0.0, message="zero-shot CLIP keeps 0.00 % (near 0 at a sufficiently large eps)")

    restate(run, weaken)


def failed_check_called_a_warning(run: Path) -> None:
    def soften(summary: dict[str, Any], _: object) -> None:
        for check in summary["checks"]:
            check["warns"] |= check["passed"] is False
        summary.update(reliable=True, unreliable_because=[])

    restate(run, soften)


def image_size_restated(run: Path) -> None:
    restate(run, lambda summary, _: summary.update(image_size=224))


def parts_of_the_attack_restated(run: Path) -> None:
    restate(run, lambda summary, _: summary["attacks"][the_attack(run)].update(fooled_by={"apgd-ce": 3}))


def data_renamed(run: Path) -> None:
    restate(run, lambda summary, _: summary.update(data="imagenet"))


def kept_image_exchanged(run: Path) -> None:
    """An image that the attack made is replaced by a clean one, as if it had been easy to see."""
    file = sorted(run.glob("images/*/clean/*.png"))[0]
    shutil.copyfile(file, file.parent.parent / "adversarial" / file.name)
    other = sorted(run.glob("images/*/clean/*.png"))[-1]
    shutil.copyfile(other, file)


def kept_images_of_another_seed(run: Path) -> None:
    """So that no evaluation is theirs, and nothing in them is compared with one."""
    change(the_index(run), lambda index: index["about"].update(seed="77"))


def kept_images_within_more(run: Path) -> None:
    change(the_index(run), lambda index: index["about"].update(eps=1.0))


def kept_images_left_out(run: Path) -> None:
    change(the_index(run), lambda index: index.update(images=index["images"][:1]))


FORGERIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "prompts changed": (prompts_changed, "prompts"),
    "prompts of another run, with their hash": (prompts_of_another_run, "classifier"),
    "eps in the result lowered": (eps_lowered, "records"),
    "attacked within a quarter of the stated eps": (attacked_within_less, "again"),
    "outcomes flipped": (outcomes_flipped, "records"),
    "outcomes flipped in every file": (outcomes_flipped_everywhere, "again"),
    "hard images left out": (hard_images_left_out, "images"),
    "hard images called unreadable": (hard_images_called_unreadable, "images"),
    "easy images repeated": (easy_images_repeated, "results"),
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
    "control weakened in every file": (control_weakened_everywhere, "again"),
    "failed check called a warning": (failed_check_called_a_warning, "results"),
    "image size restated": (image_size_restated, "again"),
    "parts of the attack restated": (parts_of_the_attack_restated, "records"),
    "data renamed": (data_renamed, "again"),
    "kept image exchanged": (kept_image_exchanged, "kept images"),
    "kept images of another seed": (kept_images_of_another_seed, "kept images"),
    "kept images within more than eps": (kept_images_within_more, "kept images"),
    "kept images left out": (kept_images_left_out, "kept images"),
}
"""What a forger does to a run, and the finding that notices it."""
