"""The model card of a run: every circumstance, whatever its names hold, and first how robust it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from apd.attacks.threat import format_eps
from apd.models import DualEncoder
from apd.models.prompts import Prompts
from apd.runs.config import RunConfig, load_config
from apd.runs.folder import Run

from .runs import NAMES, TEMPLATES

HOSTILE = ["\x1b[31mred|`x`", "<script>alert(1)</script>", "[a](http://b)\n| c | d |", "![i](x)", "**bold**\u202e"]


def test_model_card_survives_hostile_names(tmp_path: Path, clip: DualEncoder, manifest: dict[str, Any]) -> None:
    source = 'data|<b>"```\n# head'
    config = load_config(flags={"data.source": source, "method.name": "advvlp", "model": "a`b"})
    name = "run|`<i>\x1b[0m`"
    model = {**manifest["model"], "source": "a`b<u>"}
    run = Run.create(tmp_path / name, config, {**manifest, "model": model, "class_names": HOSTILE})
    run.save_prompts(Prompts.initial(config.method.settings.prompts, clip, seed=3, n_classes=len(HOSTILE)).state_dict())
    run.finish({"val_clean": 90.0})
    card = (run.path / "README.md").read_text()
    assert all(char.isprintable() or char == "\n" for char in card)
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    inline = [child for token in tokens for child in token.children or []]
    assert not [
        token for token in [*tokens, *inline] if token.type in ("html_block", "html_inline", "image", "link_open")
    ]
    assert [token.content for token in tokens if token.type == "heading_open"] == [""] * 4
    rows = [token for token in tokens if token.type == "td_open"]
    assert len(rows) % 2 == 0 and sum(token.type == "table_open" for token in tokens) == 1
    shown = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    expected = ", ".join(HOSTILE).replace("\x1b", r"\x1b").replace("\n", r"\n").replace("\u202e", r"\u202e")
    assert shown[shown.index("classes") + 1] == expected
    blocks = [token for token in tokens if token.type == "fence"]
    assert [block.info for block in blocks] == ["python", "yaml"]
    assert yaml.safe_load(blocks[1].content)["data"]["source"] == source
    assert eval(blocks[0].content.partition("load_run(")[2].partition(")  #")[0]) == run.path.as_posix()


def test_model_card_names_every_circumstance(finished: Run, manifest: dict[str, Any]) -> None:
    card = (finished.path / "README.md").read_text()
    assert f'apd.load_run("{finished.path.as_posix()}")' in card, "the path as it was given, not the folder's name"
    for value in (
        manifest["model"]["weights_sha256"],
        manifest["model"]["tokenizer_sha256"],
        *NAMES,
        *TEMPLATES,
        "1/255",
        "val clean",
    ):
        assert value in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1]), "the hub refuses a path there"
    assert "words None" not in card, "what was left to the template"
    entry = {"accuracy": 40.0, "interval": [30.0, 50.0]}
    result = {
        "clean": 80.0,
        "clean_interval": [70.0, 90.0],
        "attacks": {"pgd-5": entry, "apgd-ce": entry},
        "worst": entry,
    }
    about = {
        "n": 50,
        "data": "colours",
        "split": "test",
        "classes": "all",
        "norm": "linf",
        "eps": 1 / 255,
        "eps_text": "1/255",
        "seed": 0,
    }
    file = finished.save_result({**result, **about})
    assert json.loads(file.read_text())["n"] == 50
    card = (finished.path / "README.md").read_text()
    assert "| colours | linf | 1/255 | 0 | 50 | pgd-5 | 40.0 | 30.0 to 50.0 |" in card
    assert "worst of pgd-5, apgd-ce" in card


def evaluated(**values: Any) -> dict[str, Any]:
    """A result as JSON has it."""
    scores = {
        "clean": 80.0,
        "clean_interval": [70.0, 90.0],
        "attacks": {"pgd-5": {"accuracy": 40.0, "interval": [30.0, 50.0]}},
        "worst": {"accuracy": 40.0, "interval": [30.0, 50.0]},
    }
    zero_shot = {**scores, "clean": 61.0, "attacks": {"pgd-5": {"accuracy": 2.5, "interval": [1.0, 6.0]}}}
    about = {"n": 50, "n_available": 90, "n_classes": 10, "data": "colours", "split": "test", "classes": "all"}
    threat = {"norm": "linf", "eps": 1 / 255, "eps_text": "1/255", "seed": 0, "undefended": zero_shot}
    checks = [{"name": "huge eps", "passed": True, "value": 0.0, "message": "fine"}]
    return {**scores, **about, **threat, "checks": checks, **values}


def test_the_card_opens_with_the_run_s_own_data_whatever_its_source_is_called(finished: Run) -> None:
    finished.manifest["data"]["name"] = "split_a"  # of a CoOp split file, as the evaluation calls it, too
    finished.save_result(evaluated(data="split_a", n=4, clean=71.0))
    finished.save_result(evaluated(data="other", n=200, clean=72.0))
    assert "71.0" in opening(finished) and "72.0" not in opening(finished).split("Circumstances")[0]


def test_the_card_says_that_a_patch_is_not_limited_by_eps(finished: Run) -> None:
    score = {"accuracy": 40.0, "interval": [30.0, 50.0]}
    finished.save_result(evaluated(attacks={"patch-5": score}, undefended=None))
    assert "a patch to any pixels" in opening(finished)


def opening(run: Run) -> str:
    """The card's part before its first code block."""
    return (run.path / "README.md").read_text().split("```")[0]


def test_model_card_opens_with_the_evaluation_beside_zero_shot_and_the_health_checks(finished: Run) -> None:
    assert "apd evaluate" in opening(finished)
    finished.save_result(evaluated())
    shown = opening(finished)
    assert "| clean | **80.0 (70.0 to 90.0)** | 61.0 (70.0 to 90.0) |" in shown
    assert "patch" not in shown
    assert "| attacked by pgd-5 | **40.0 (30.0 to 50.0)** | 2.5 (1.0 to 6.0) |" in shown
    assert "50 of 90 test images" in shown and "1 of 1 passed" in shown and "chance" not in shown
    bad = {"name": "random noise", "passed": False, "value": 1.0, "message": "noise <b>fools</b> more"}
    finished.save_result(evaluated(n=60, checks=[bad], clean=11.0, clean_interval=[6.0, 18.0]))
    shown = opening(finished)
    assert "60 of 90" in shown and "random noise" in shown and "<b>" not in shown and "chance" in shown


def test_model_card_opens_with_the_evaluation_that_says_most(finished: Run) -> None:
    finished.save_result(evaluated(n=20, n_available=20))
    for other in (
        {"data": "elsewhere"},
        {"data": "elsewhere", "own_data": None},
        {"own_data": False, "seed": 1},
        {"corruption": "fog:3"},
        {"eps": 4 / 255, "eps_text": "4/255"},
        {"attacks": {}},
        {"split": "val"},
    ):
        finished.save_result(evaluated(n=90, **other))
    shown = opening(finished)
    assert "20 test images of" in shown and "**40.0" in shown


def test_a_model_card_writes_eps_of_l2_as_a_number(finished: Run) -> None:
    """Older results have it in 255ths; their files keep their names."""
    older = evaluated(norm="l2", eps=0.2, eps_text="51/255")
    assert finished.save_result(older).name == finished.save_result({**older, "eps_text": "0.2"}).name
    finished.save_result(older)
    assert "| l2 | 0.2 |" in (finished.path / "README.md").read_text() and "within l2 eps 0.2 of" in opening(finished)


def test_a_model_card_opens_with_the_eps_that_was_trained_for_in_any_norm(
    tmp_path: Path, clip: DualEncoder, config: RunConfig, manifest: dict[str, Any]
) -> None:
    trained = config.train.model_copy(update={"norm": "l2", "eps": "1/3"})
    run = Run.create(tmp_path / "run", config.model_copy(update={"train": trained}), manifest)
    run.save_prompts(Prompts.initial(config.method.settings.prompts, clip, n_classes=len(NAMES)).state_dict())
    run.finish({}, {})
    for n, eps in ((20, 1 / 3), (50, 0.5)):
        run.save_result(evaluated(norm="l2", eps=eps, eps_text=format_eps(eps, "l2"), n=n))
    assert "l2 eps 0.333333 of" in opening(run)


def test_a_model_card_for_the_hub_has_its_base_model_and_no_endless_digits(
    tmp_path: Path, clip: DualEncoder, config: RunConfig, manifest: dict[str, Any]
) -> None:
    model = {**manifest["model"], "source": "openai/clip-vit-base-patch32"}
    run = Run.create(tmp_path / "run", config, {**manifest, "model": model})
    run.save_prompts(Prompts.initial(config.method.settings.prompts, clip, n_classes=len(NAMES)).state_dict())
    run.finish({"val_clean": 100 / 3, "val_robust": 0.0}, {"balance": 2 / 3})
    card = (run.path / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "openai/clip-vit-base-patch32"
    rows = {line.split(" | ")[0]: line.split(" | ")[1] for line in card.splitlines() if line.startswith("| ")}
    assert (rows["| val clean"], rows["| val robust"], rows["| balance"]) == ("33.33 |", "0 |", "0.6667 |")
