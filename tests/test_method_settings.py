"""Settings of the family: prompts of its own kind, published presets, and what a saved file keeps for another method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import apd
from apd.methods import METHODS, find_method
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import PromptSpec
from apd.runs.config import RunConfig, load_config, with_class_contexts
from apd.runs.differences import check_same
from apd.runs.setting_differences import differences

from .refusals import refused

CLASSES = ["cat", "dog", "grand piano"]
DIGITS = {"data.source": "digits"}
CONTEXTS = "method.prompts.class_specific"


@pytest.mark.parametrize(
    ("name", "setting", "names"),
    [
        ("coop", "visual_tokens=2", ["prompts.visual_tokens=0"]),
        ("advvp", "text_tokens=1", ["prompts.text_tokens=0"]),
        ("maple", "coupling=none", ["prompts.coupling=text-to-vision"]),
        ("zero-shot", "text_tokens=1", ["prompts.text_tokens=0"]),
        ("vlp", "class_specific=true", None),
        ("advvlp", "frame=0.7", ["0.5"]),
    ],
)
def test_prompts_of_another_method_are_refused(name: str, setting: str, names: list[str] | None) -> None:
    flags = {"data.source": "digits", "method.name": name}
    if names is None:
        assert load_config(flags=flags, sets=[f"method.prompts.{setting}"]).method.settings.prompts.class_specific
        return
    with refused(f"--set method.prompts.{setting}", *names):
        load_config(flags=flags, sets=[f"method.prompts.{setting}"])


def _decided(config: RunConfig) -> bool | None:
    """What is decided about contexts on the digits, of which there are more than 16 per class."""
    decided = with_class_contexts(config, lambda: config.data.load(0))
    return decided.method.settings.prompts.class_specific


@pytest.mark.parametrize("name", METHODS)
def test_each_class_has_a_context_by_default_where_that_was_measured(name: str) -> None:
    measured = {"apd", "advvlp", "trades", "pmg"}
    assert _decided(load_config(flags={**DIGITS, "method.name": name})) is (name in measured)


@pytest.mark.parametrize(
    ("setting", "class_specific"),
    [
        ("method.teacher=frozen", True),
        ("method.variant=rslad", True),
        ("method.prompts.text_depth=1", True),
        (f"{CONTEXTS}=false", False),
        (f"{CONTEXTS}=null", True),
        ("method.prompts.text_tokens=0", False),
        ("method.prompts={text_tokens: 2, visual_tokens: 2, coupling: text-to-vision}", False),
        ("method.prompts.experts=2", False),
        ("data.classes=base", False),
        ("data.classes=new", False),
        ("data.shots=15", False),
        ("data.shots=16", True),
        ("data.shots=all", True),
    ],
)
def test_a_context_for_each_class_is_the_default_where_it_can_be_and_all_classes_are_trained(
    tmp_path: Path, setting: str, class_specific: bool
) -> None:
    assert _decided(load_config(flags=DIGITS, sets=[setting])) is class_specific
    (tmp_path / "run.yaml").write_text(load_config(flags=DIGITS).to_yaml())
    assert _decided(load_config(tmp_path / "run.yaml", sets=[setting])) is class_specific, "saved, it is still open"


def test_published_prompts_share_a_context_as_their_authors_do() -> None:
    assert _decided(load_config(flags={**DIGITS, "method.name": "advvlp"}, sets=["method.preset=published"])) is False


@pytest.mark.parametrize("chosen", [True, False])
def test_what_a_person_chose_stands_in_a_saved_run(tmp_path: Path, chosen: bool) -> None:
    (tmp_path / "own.yaml").write_text(load_config(flags=DIGITS, sets=[f"{CONTEXTS}={chosen}"]).to_yaml())
    for shots in (1, 16):
        again = load_config(tmp_path / "own.yaml", {"data.shots": shots}, sets=["method.prompts.text_depth=1"])
        assert _decided(again) is chosen


def test_a_method_without_anything_to_learn_is_refused_before_any_image_is_read(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apd.training.batches.decode", lambda *_: pytest.fail("decoded"))
    nothing = {"name": "advvlp", "prompts": {"text_tokens": 0, "visual_tokens": 0}}
    with refused("advvlp", "method.prompts.text_tokens", "visual_tokens", "zero-shot"):
        apd.train(clip, apd.load_data(colours, shots=1), method=nothing, output=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


WITH_PRESET = [name for name, method in METHODS.items() if method.Settings.published]


@pytest.mark.parametrize("name", WITH_PRESET)
def test_a_published_preset_sets_what_it_says_and_explicit_settings_win(tmp_path: Path, name: str) -> None:
    flags = {"data.source": "digits", "method.name": name}
    config = load_config(flags=flags, sets=["method.preset=published"])

    def value(config: Any, dotted: str) -> Any:
        found: Any = config.model_dump(mode="json")
        for part in dotted.split("."):
            found = found[part]
        return found

    published = find_method(name).Settings.published
    assert {key: value(config, key) for key in published} == published
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config

    own = load_config(flags={**flags, "train.epochs": 3}, sets=["method.preset=published", "train.optimizer.lr=0.5"])
    assert (own.train.epochs, own.train.optimizer.lr) == (3, 0.5)
    key = "train.attack.steps" if "train.attack.steps" in published else "train.batch_size"
    assert value(own, key) == published[key]


def test_presets_for_deep_towers_are_refused_on_shallow_ones_and_all_wins(clip: DualEncoder) -> None:
    flags = {"data.source": "digits", "method.name": "maple"}
    deep = load_config(flags=flags, sets=["method.preset=published"]).method.settings
    with refused("prompts.text_depth", "9", "3", "all"):
        find_method("maple")(deep, PromptedCLIP(clip, None, CLASSES))
    sets = ["method.preset=published", "method.prompts.text_depth=all", "method.prompts.visual_depth=all"]
    shallow = load_config(flags=flags, sets=sets).method.settings
    assert find_method("maple")(shallow, PromptedCLIP(clip, None, CLASSES)).student.prompts.spec.text_tokens == 2


def test_a_method_without_published_prompts_has_no_preset() -> None:
    assert {"apd", "trades", "pmg", "fare", "agft", "promptkd", "zero-shot"}.isdisjoint(WITH_PRESET)
    with refused("trades", "method.preset"):
        load_config(flags={"data.source": "digits", "method.name": "trades"}, sets=["method.preset=published"])


def test_a_preset_that_is_asked_for_wins_over_the_values_of_a_saved_run(tmp_path: Path) -> None:
    file, flags = tmp_path / "config.yaml", {"data.source": "digits", "method.name": "maple", "train.seed": 3}
    plain, paper = load_config(flags=flags), load_config(flags=flags, sets=["method.preset=published"])
    assert plain != paper
    file.write_text(plain.to_yaml())
    assert load_config(file, sets=["method.preset=published"]) == paper
    assert load_config(file, {"train.epochs": 7}, ["method.preset=published"]).train.epochs == 7, "a flag wins over it"
    assert load_config(file, sets=["method.preset=own"]) == plain
    file.write_text(paper.to_yaml())
    assert load_config(file, sets=["method.preset=own"]) == plain
    assert load_config(file, sets=["method.preset=published"]) == paper
    file.write_text(load_config(flags={**flags, "method.name": "apd"}).to_yaml())
    assert load_config(file, {"method.name": "maple"}, ["method.preset=published"]) == paper
    file.write_text("method: maple\ntrain: {epochs: 2}\n")
    chosen = load_config(file, flags, ["method.preset=published"]).train
    assert (chosen.epochs, chosen.batch_size) == (2, paper.train.batch_size), "what a person wrote stands"


@pytest.mark.parametrize("name", WITH_PRESET)
def test_another_method_on_a_saved_published_run_has_its_own_paper_s_settings(tmp_path: Path, name: str) -> None:
    saved, published = tmp_path / "config.yaml", ["method.preset=published"]
    saved.write_text(load_config(flags={**DIGITS, "method.name": name}, sets=published).to_yaml())
    for other in WITH_PRESET:
        paper = load_config(flags={**DIGITS, "method.name": other}, sets=published)
        assert load_config(saved, {"method.name": other}) == paper, "the preset stays, its values do not"
        assert load_config(saved, {"method.name": other}, published) == paper
    assert load_config(saved, {"method.name": "trades"}, ["method.preset=own"]) == load_config(
        flags={**DIGITS, "method.name": "trades"}
    )
    with refused("trades", "method.preset=own"):
        load_config(saved, {"method.name": "trades"})


def test_what_was_chosen_beside_a_preset_stands_with_another_method(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("data: digits\nmethod: {name: maple, preset: published}\ntrain: {epochs: 2}\n")
    coop = load_config(tmp_path / "own.yaml", {"method.name": "coop"})
    paper = load_config(flags={**DIGITS, "method.name": "coop"}, sets=["method.preset=published"])
    assert (coop.train.epochs, coop.train.optimizer) == (2, paper.train.optimizer)


@pytest.mark.parametrize(
    ("name", "setting", "names"),
    [
        ("fap", "attack.random_start=false", ["train.attack.random_start=false", "true"]),
        ("trades", "attack={kind: carried, random_start: false}", ["train.attack.random_start=false", "true"]),
        ("trades", "attack={kind: fgsm-rs, random_start: false}", None),
        ("trades", "attack={kind: n-fgsm, options: {noise: 0}}", ["train.attack.options", "'noise': 0", "above 0"]),
        ("advvlp", "attack={kind: n-fgsm, options: {noise: 0}, loss: kl}", ["train.attack.loss=kl", "'noise': 0"]),
        ("trades", "attack={kind: n-fgsm, options: {noise: 0.5}}", None),
        ("advvlp", "attack={kind: n-fgsm, options: {noise: 0}}", None),
        ("advpt", "attack.random_start=false", ["train.attack.random_start=false", "true"]),
        ("advpt", "attack.kind=free", ["train.attack.kind=free", "advpt", "pgd", "fgsm-rs", "n-fgsm"]),
        ("advpt", "attack.kind=carried", ["train.attack.kind=carried", "advpt", "pgd", "fgsm-rs", "n-fgsm"]),
        ("advpt", "attack.loss=margin", ["train.attack.loss=margin", "advpt", "method.inner", "features", "ce"]),
        ("advpt", "eps_warmup_epochs=3", ["train.eps_warmup_epochs", "advpt"]),
        ("advpt", "eps_warmup_wait=3", ["train.eps_warmup_wait", "advpt"]),
        ("advpt", "eps_per_image=true", ["train.eps_per_image", "false"]),
        ("advvlp", "eps_per_image=true", None),
        ("apd", "eps_per_image=true", None),
        ("trades", "eps_per_image=true", ["train.eps_per_image", "false"]),
        ("advvlp", "eps_warmup_epochs=3", None),
        (
            "advvlp",
            "attack={loss: kl, random_start: false}",
            ["train.attack.loss=kl", "train.attack.random_start=false"],
        ),
        ("advvlp", "attack.random_start=false", None),
        ("apd", "attack={kind: free}", None),
        (
            "apd",
            "attack={stop_margin: 1.0}",
            ["train.attack.stop_margin", "method.inner=mixed", "null", "method.inner=ce"],
        ),
        ("apd", "attack={stop_margin: 1.0, loss: ce}", None),
        ("adaad", "attack={kind: free}", ["method.inner=teacher-pair", "train.attack.kind=free"]),
        ("adaad", "attack={kind: n-fgsm}", None),
        ("fare", "label_smoothing=0.1", ["train.label_smoothing", "fare", "0"]),
        ("agft", "label_smoothing=0.1", ["train.label_smoothing", "agft", "0"]),
        ("agft", "attack.loss=margin", ["train.attack.loss=margin", "agft"]),
        ("apd", "attack.loss=margin", None),
        ("trades", "attack.loss=margin", ["train.attack.loss=margin", "method"]),
        ("fare", "attack.loss=margin", ["train.attack.loss=margin", "method"]),
        ("adaad", "attack.loss=margin", ["train.attack.loss=margin", "method.inner=teacher-pair", "method.inner=ce"]),
        ("trades", "attack={stop_margin: 1.0}", ["train.attack.stop_margin", "null"]),
        ("agft", "attack={stop_margin: 1.0}", ["train.attack.stop_margin", "null"]),
        ("advvlp", "attack={stop_margin: 1.0}", None),
        ("advvlp", "attack={kind: n-fgsm, options: {step_size: -1}}", ["step_size", "-1"]),
        ("advvlp", "attack={kind: n-fgsm, options: {step_size: 1/255}}", ["step_size", "1/255"]),
        ("advvlp", "attack={kind: fgsm-rs, options: {step_size: .inf}}", ["step_size", "inf"]),
        ("advvlp", "attack={kind: noise, options: {steps: 2.5}}", ["steps", "2.5"]),
        ("advvlp", "attack={kind: noise, options: {sigma: 0.5, steps: 2}}", None),
        ("advvlp", "optimizer.lr=.inf", ["train.optimizer.lr"]),
        ("apd", "label_smoothing=0.1", None),
        ("soft labels", "label_smoothing=0.1", ["train.label_smoothing", "0", "method.clean_ce"]),
        ("adaad", "label_smoothing=0.1", ["train.label_smoothing", "0", "method.clean_ce"]),
        (
            "adaad",
            "attack={stop_margin: 1.0}",
            ["train.attack.stop_margin", "method.inner=teacher-pair", "method.inner=ce"],
        ),
    ],
)
def test_training_that_cannot_go_with_a_method_is_refused(name: str, setting: str, names: list[str] | None) -> None:
    alone = {"method.name": "apd", "method.balance": 1.0}
    more = {"adaad": {"method.name": "apd", "method.variant": name}, "soft labels": alone}
    flags, sets = {"data.source": "digits", **more.get(name, {"method.name": name})}, [f"train.{setting}"]
    if names is None:
        assert load_config(flags=flags, sets=sets)
        return
    with refused(*names):
        load_config(flags=flags, sets=sets)


def test_a_run_that_said_what_is_open_now_is_resumed_with_the_prompts_it_has() -> None:
    before, now = load_config(flags=DIGITS, sets=[f"{CONTEXTS}=false"]), load_config(flags=DIGITS)
    had = {"prompts": {"class_specific": False}}
    check_same(Path("run"), (before, now), (had, had))
    with refused("prompts.class_specific", "--overwrite"):
        check_same(Path("run"), (before, now), (had, {"prompts": {"class_specific": True}}))
    with refused(f"{CONTEXTS}=False", "True"):
        check_same(Path("run"), (before, load_config(flags=DIGITS, sets=[f"{CONTEXTS}=true"])), (had, had))


def test_kept_images_that_would_never_leave_the_clean_ones_are_refused() -> None:
    sets = ["train.eps_warmup_wait=1", "train.attack.kind=carried"]
    with refused("train.eps_warmup_wait", "carried", "0"):
        load_config(flags={**DIGITS, "method.name": "trades"}, sets=sets)
    assert load_config(flags={**DIGITS, "method.name": "advvlp"}, sets=sets).train.eps_warmup_wait == 1


def test_another_method_s_kind_of_prompts_is_left_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(load_config(flags={"data.source": "digits"}, sets=["method.prompts.text_tokens=3"]).to_yaml())
    assert load_config(file, {"method.name": "trades"}).method.settings.prompts.text_tokens == 3
    coop = load_config(file, {"method.name": "coop"}).method.settings.prompts
    assert (coop.text_tokens, coop.visual_tokens, coop.text_depth) == (PromptSpec().text_tokens, 0, 1)


@pytest.mark.parametrize(
    ("per_class", "class_specific"), [([20, 20, 7], True), ([10, 10, 40], False), ([6, 6, 6], False)]
)
def test_a_context_for_each_class_needs_labelled_images_of_most_classes(
    clip: DualEncoder, tmp_path: Path, per_class: list[int], class_specific: bool
) -> None:
    labels = torch.tensor([label for label, n in enumerate(per_class) for _ in range(n)])
    images = torch.rand(len(labels), 3, 16, 16)
    data = apd.Dataset.from_tensors("noise", CLASSES, train=(images, labels), test=(images[:3], torch.arange(3)))
    method = {"name": "advvlp", "prompts": {"text_tokens": 1, "visual_tokens": 1}}
    run = apd.train(clip, data, method=method, steps=1, output=tmp_path / "run", device="cpu", quiet=True)
    assert run.manifest["prompts"]["class_specific"] is class_specific
    assert run.config.method.settings.prompts.class_specific is None, "the next training decides anew"
    chosen = {**method, "prompts": {**method["prompts"], "class_specific": True}}
    kept = apd.train(clip, data, method=chosen, steps=1, output=tmp_path / "kept", device="cpu", quiet=True)
    assert kept.manifest["prompts"]["class_specific"], "who asks for it gets it"
    found = differences(run.path, kept.path)
    assert found == (() if class_specific else ((CONTEXTS, "False", "True"),)), "what was decided is compared"


def test_going_back_to_apd_drops_the_defaults_of_another_variant(tmp_path: Path) -> None:
    (tmp_path / "ard.yaml").write_text(load_config(flags=DIGITS, sets=["method.variant=ard"]).to_yaml())
    assert load_config(tmp_path / "ard.yaml", sets=["method.variant=apd"]) == load_config(flags=DIGITS)
