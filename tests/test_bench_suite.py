"""Suite files: what may be written, what is refused and how, and what the protocols make of it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from apd.attacks import EVALUATION
from apd.bench import PROTOCOLS, Suite, load_suite, make_plan
from apd.bench.blocks import Block
from apd.bench.estimate import attack_passes
from apd.bench.identity import data_identity
from apd.bench.loaded import encoder, encoder_info, whole
from apd.bench.plan import Job, Plan
from apd.bench.protocols import EvalSpec
from apd.bench.report.published import load_published, published_markdown
from apd.data import load_data
from apd.data.settings import DataSettings
from apd.demo import DEMO, METHODS
from apd.errors import nearest
from apd.settings.train import TrainSettings

from .models import save_clip
from .refusals import meant, refused
from .suites import Write

SUITES = Path(__file__).resolve().parents[1] / "suites"
CORE = {"zero-shot", "advvlp", "advmaple", "fap", "trades", "apd"}
VIEW = EvalSpec("test", "test", "a", "1/255", ("pgd-5",), 10)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"blocs": []}, ["'blocs'", meant("blocks")]),
        ({"data": {"colours": {"source": "x", "ep": "1/255"}}}, ["'data.colours.ep'", meant("data.colours.eps")]),
        ({"data": {"colours": {"source": "x", "seed": 3}}}, ["data", "seed", "seeds"]),
        ({"attacks": "pgd"}, ["'pgd'", meant("pgd-20")]),
        ({"attacks": "fgsmm"}, ["'fgsmm'", nearest("fgsmm", ["pgd-20"], EVALUATION)]),
        ({"final": {"best": 0}}, ["final.best"]),
        ({"data": {"colours": {"source": "x", "eps": 4}}}, ["eps", "4", "4/255"]),
        ({"data": {"colours": {"source": "x", "norm": "l3"}}}, ["data.colours.norm", "l3"]),
        ({"data": {"colours": {"source": "x", "norm": "l1"}}, "attacks": "cw"}, ["cw", "l1", "l2"]),
        ({"block": {"protocol": "fewshot"}}, ["'fewshot'", meant("few-shot")]),
        ({"block": {"methods": "advvpl"}}, ["'advvpl'", meant("advvlp")]),
        ({"block": {"data": "color"}}, ["'color'", meant("colours")]),
        ({"block": {"seed": 3}}, ["'blocks.0.seed'", meant("blocks.0.seeds")]),
        ({"block": {"protocol": "cross-dataset"}}, ["cross-dataset", "'to'"]),
        ({"block": {"protocol": "cross-dataset", "to": "colours"}}, ["cross-dataset", "'colours'", "'to'"]),
        ({"block": {"seeds": []}}, ["blocks.0.seeds"]),
        ({"block": {"attacks": []}}, ["blocks.0.attacks"]),
        ({"block": {"seeds": [2**64]}}, ["blocks.0.seeds.0", str(2**63 - 1), str(2**64)]),
        ({"block": {"severity": 3}}, ["'severity'", "few-shot"]),
        ({"final": {"protocols": "base-to-new"}}, ["final.protocols", "base-to-new"]),
        ({"block": {"eps": "1/255"}}, ["'eps'", "few-shot"]),
    ],
)
def test_load_suite_refuses_in_one_line(write: Write, changes: dict[str, Any], names: list[str]) -> None:
    block = {"protocol": "few-shot", "data": "colours", "methods": "advvlp", **changes.pop("block", {})}
    with refused("tiny.yaml", *names):
        load_suite(write(blocks=[block], **changes))


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"attacks": "pgd"}, "attacks: "),
        ({"block": {"attacks": "pgd"}}, "blocks.0: "),
        ({"block": {"data": "color"}}, "blocks.0: "),
        ({"data": {}}, "blocks.0: "),
        ({"block": {"seeds": -1}}, "blocks.0.seeds.0 must"),
        ({"data": {"colours": {"source": "x", "eps": 4}}}, "data.colours: "),
        ({"data": {"colours": {"source": "x", "shots": 0}}}, "data.colours: "),
        ({"final": {"attacks": "pgd"}}, "final: "),
        ({"against": "alp"}, "against: "),
    ],
)
def test_a_refusal_begins_with_file_and_row(write: Write, changes: dict[str, Any], row: str) -> None:
    block = {"protocol": "few-shot", "data": "colours", "methods": "advvlp", **changes.pop("block", {})}
    file = write(blocks=[block], **changes)
    with refused() as error:
        load_suite(file)
    assert str(error.value).startswith(f"{file}: {row}")
    assert "(And" not in str(error.value), "one mistake is told as one"


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"model": "glyfs"}, "model"),
        ({"own": {"model": "glyfs"}}, "data.colours.model"),
        ({"own": {"source": "./nowhere"}}, "data.colours"),
        ({"own": {"unlabelled": "./nowhere"}}, "data.colours"),
        ({"own": {"templates": []}}, "data.colours"),
        ({"methods": {"advvlp": {"name": "advvlp", "data": {"unlabelled": "./nowhere"}}}}, "methods.advvlp"),
        ({"methods": {"advvlp": {"name": "apd", "teacher": "./nowhere"}}}, "methods.advvlp"),
    ],
)
def test_what_a_plan_cannot_find_is_told_with_file_and_row(
    write: Write, colours: Path, changes: dict[str, Any], row: str
) -> None:
    data = {"colours": {"source": str(colours), "eps": "8/255", **changes.pop("own", {})}}
    block = {"protocol": "few-shot", "data": "colours", "methods": "advvlp"}
    file = write(data=data, blocks=[block], **changes)
    with refused() as error:
        make_plan(load_suite(file))
    assert str(error.value).startswith(f"{file}: {row}: ")


@pytest.mark.parametrize("name", ["test", "val", "base", "new", "colours final", "test-final"])
def test_a_data_set_is_not_called_like_a_part_of_one(write: Write, colours: Path, name: str) -> None:
    entry = {"source": str(colours), "eps": "8/255"}
    blocks = [{"protocol": "cross-dataset", "data": "colours", "to": name, "methods": "advvlp"}]
    with refused("tiny.yaml", repr(name)):
        load_suite(write(data={"colours": entry, name: entry}, blocks=blocks))
    blocks[0]["to"] = "newer"
    assert load_suite(write(data={"colours": entry, "newer": entry}, blocks=blocks)).data.keys() == {"colours", "newer"}


def test_unreadable_files_and_missing_roots(tmp_path: Path, write: Write) -> None:
    with refused("none.yaml"):
        load_suite(tmp_path / "none.yaml")
    (tmp_path / "odd.yaml").write_text("data:\n  a: b: c\n")
    with refused("odd.yaml", "YAML", "2", "7"):
        load_suite(tmp_path / "odd.yaml")
    with refused("tiny.yaml", "nowhere", "--root"):
        load_suite(write(root="nowhere"))


ALL = ["zero-shot", "alp"]


@pytest.mark.parametrize(
    ("changes", "row", "names"),
    [
        ({"methods": {"alp": {"name": "advvlp", "claen": 1}}}, "methods.alp", ["'claen'", meant("clean")]),
        ({"methods": {"alp": "advvpl"}}, "methods.alp", ["'advvpl'", meant("advvlp")]),
        ({"methods": {"alp": "lost"}}, "methods.alp", ["'lost'", "others", "'no_such_module'"]),
        (
            {"methods": {"alp": {"name": "advvlp", "train": {"epoch": 2}}}},
            "methods.alp",
            ["'train.epoch'", meant("train.epochs")],
        ),
        ({"methods": {"alp": {"name": "advvlp", "train": 3}}}, "methods.alp", ["train", "epochs", "3"]),
        ({"train": {"epoch": 2}}, "", ["'train.epoch'", meant("train.epochs")]),
        ({"own": {"optimizer": {"lr": -1}}}, "data.colours", ["train.optimizer.lr", "0", "-1"]),
        ({"own": {"epochs": 0}, "train": {"epochs": 3}}, "data.colours", ["train.epochs", "0"]),
        # Each of the two layers is fine alone.
        ({"own": {"ema": 0.9}, "train": {"swa": 0.5}}, "data.colours", ["train.ema", "train.swa"]),
        ({"methods": {"alp": "fare"}, "train": {"label_smoothing": 0.1}}, "methods.alp", ["train.label_smoothing"]),
        ({"train": {"seed": 2}}, "", ["train.seed", "seeds"]),
        ({"own": {"device": "cpu"}}, "data.colours", ["train.device", "apd bench"]),
        # A row that no block asks for.
        ({"methods": {"alp": "advvlp", "idle": "advvpl"}}, "methods.idle", ["'advvpl'", meant("advvlp")]),
        ({"block": {"seeds": [0, -1]}}, "", ["blocks.0.seeds.1", "0", "-1"]),
        ({"block": {"shots": [4, 0]}}, "", ["shots: 0", "unlabelled"]),
        ({"block": {"unlabelled": []}}, "", ["unlabelled"]),
    ],
)
@pytest.mark.usefixtures("broken_methods")
def test_settings_are_refused_with_file_and_row_before_anything_is_loaded(
    write: Write, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], row: str, names: list[str]
) -> None:
    for heavy in ("identity.encoder_info", "identity.whole", "plan.encoder_info", "plan.dataset"):
        monkeypatch.setattr(f"apd.bench.{heavy}", lambda *_, **__: pytest.fail("something heavy was loaded"))
    data = {"colours": {"source": "./nowhere", "eps": "1/255", "train": changes.pop("own", {})}}
    methods = {"zero-shot": None, "alp": "advvlp", **changes.pop("methods", {})}
    block = {"protocol": "few-shot", "data": "colours", "methods": ALL, **changes.pop("block", {})}
    file = write(data=data, methods=methods, blocks=[block], **changes)
    with refused(*names) as error:
        load_suite(file)
    assert str(error.value).startswith(f"{file}: " + (f"{row}: " if row else ""))


def test_method_settings_override_a_suite_setting_that_does_not_fit(write: Write) -> None:
    methods = {"zero-shot": None, "fare": {"name": "fare", "train": {"label_smoothing": 0}}, "advvlp": "advvlp"}
    block = {"protocol": "few-shot", "data": "colours", "methods": ["fare", "advvlp"]}
    suite = load_suite(write(methods=methods, blocks=[block], train={"label_smoothing": 0.1}))
    assert [suite.run_config("colours", name).train.label_smoothing for name in ("fare", "advvlp")] == [0.0, 0.1]


def test_paths_have_a_slash_and_start_at_the_root(tmp_path: Path, write: Write) -> None:
    there = tmp_path / "there"
    for name in ("data", "digits", "models"):
        (there / name).mkdir(parents=True)
    suite = load_suite(write(root="there"))
    assert suite.resolve("./data") == suite.resolve("models/../data") == str(there / "data")
    assert suite.resolve(str(there / "data")) == str(there / "data")
    assert suite.resolve("digits") == "digits" and suite.resolve("hf:owner/name") == "hf:owner/name"
    assert suite.resolve("dtd@models") == f"dtd@{there / 'models'}"
    assert suite.resolve("openai/clip-vit-base-patch32", "model") == "openai/clip-vit-base-patch32"
    assert suite.resolve("./models", "model") == str(there / "models")
    assert suite.resolve("open_clip:ViT-B-32/openai", "model") == "open_clip:ViT-B-32/openai"
    (there / "fare.pt").touch()
    assert suite.resolve("fare.pt", "model") == str(there / "fare.pt")
    assert suite.resolve("./models+fare.pt", "model") == f"{there / 'models'}+{there / 'fare.pt'}"
    assert suite.resolve("openai/clip+fare.pt", "model") == f"openai/clip+{there / 'fare.pt'}"
    assert load_suite(write(root="nowhere"), root=there).resolve("./data") == suite.resolve("./data")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("./birds", "data"),
        ("../birds", "data"),
        ("/nowhere/birds", "data"),
        ("data/birds", "data"),
        ("nowhere/birds", "data"),
        ("./clip", "model"),
        ("data/clip", "model"),
    ],
)
def test_a_path_to_nothing_is_refused_and_not_looked_for_elsewhere(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, source: str, what: Literal["data", "model"]
) -> None:
    (tmp_path / "there" / "data").mkdir(parents=True)
    (tmp_path / "here" / source.lstrip("./")).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    suite = load_suite(write(root="there"))
    with refused(what, repr(source), str((tmp_path / "there" / source).resolve()), "--root") as error:
        suite.resolve(source, what)
    assert str(tmp_path / "here") not in str(error.value)


def test_a_word_that_names_no_data_is_a_folder_below_the_root(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("there/birds", "here/birds", "here/boats"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    suite = load_suite(write(root="there"))
    assert suite.resolve("birds") == str(tmp_path / "there" / "birds")
    for source, hint in (("boats", "digits"), ("digts", meant("digits"))):
        with refused(repr(source), str(tmp_path / "there" / source), hint):
            suite.resolve(source)


def test_a_root_may_be_in_the_home_directory(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (
        load_suite(write(root="~/data")).root
        == load_suite(write(), root="~/data").root
        == str(tmp_path / "home" / "data")
    )


def test_without_a_root_paths_start_at_the_working_directory(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_suite(write()).resolve("./birds") == str(tmp_path / "birds")
    with refused("'./boats'", str(tmp_path / "boats"), "--root"):
        load_suite(write()).resolve("./boats")


def test_training_settings_come_from_suite_data_and_ablation(write: Write, colours: Path) -> None:
    data = {"colours": {"source": str(colours), "eps": "8/255", "shots": 2, "train": {"optimizer": {"lr": 0.5}}}}
    methods = {"zero-shot": None, "vlp": "vlp", "advvlp": {"name": "advvlp", "train": {"ema": 0.9}}}
    jobs = make_plan(load_suite(write(data=data, methods=methods, train={"epochs": 3}))).jobs.values()
    train = {job.config.method.name: job.config.train for job in jobs if job.config is not None}
    plain, changed = train["vlp"], train["advvlp"]
    assert (plain.epochs, plain.optimizer.lr, plain.eps) == (3, 0.5, "8/255")
    assert (plain.ema, changed.ema) == (0.0, 0.9)


@pytest.mark.parametrize(
    ("protocol", "changes", "class_specific"),
    [
        ("few-shot", {}, True),
        ("few-shot", {"prompts": {"class_specific": False}}, False),
        ("few-shot", {"methods": {"apd": {"name": "apd", "prompts": {"class_specific": False}}}}, False),
        ("base-to-new", {}, False),
        ("base-to-new", {"methods": {"apd": {"name": "apd", "prompts": {"class_specific": None}}}}, False),
        ("base-to-new", {"methods": {"apd": {"name": "apd", "prompts": {"class_specific": True}}}}, True),
        ("cross-dataset", {}, False),
        ("domain-shift", {}, True),
        ("few-shot", {"shots": 15}, False),
    ],
)
def test_classes_share_a_context_by_default_where_others_are_evaluated(
    write: Write, protocol: str, changes: dict[str, Any], class_specific: bool
) -> None:
    to = {"to": "others"} if PROTOCOLS[protocol].needs == "to" else {}
    changes = dict(changes)
    block = {"protocol": protocol, "data": "home", "methods": "apd", **to, "shots": changes.pop("shots", 16)}
    data: dict[str, Any] = {name: {"source": "digits", "eps": "8/255", "shots": 16} for name in ("home", "others")}
    data["others"]["validation"] = 3  # other images
    plan = make_plan(load_suite(write(**{"data": data, "methods": {"apd": "apd"}, "blocks": [block], **changes})))
    (job,) = plan.jobs.values()
    assert job.config is not None and job.config.method.settings.prompts.class_specific == class_specific


def test_two_trainings_of_a_method_on_the_same_images_are_told_apart(write: Write) -> None:
    blocks = [{"protocol": "few-shot", "data": "home", "methods": "apd", "shots": 16}]
    blocks += [{**blocks[0], "protocol": "cross-dataset", "to": "others"}]
    data: dict[str, Any] = {name: {"source": "digits", "eps": "8/255"} for name in ("home", "others")}
    data["others"]["validation"] = 3  # other images
    plan = make_plan(load_suite(write(data=data, methods={"apd": "apd"}, blocks=[*blocks, blocks[0]])))
    assert len({job.label for job in plan.jobs.values()}) == len(plan.jobs) == 2


@pytest.mark.parametrize(
    ("protocol", "more", "splits"),
    [
        ("few-shot", {}, ["test"]),
        ("teacher-study", {}, ["test"]),
        ("base-to-new", {}, ["base", "new"]),
        ("cross-dataset", {"to": ["b", "c"]}, ["test", "b", "c"]),
        ("cross-dataset", {"to": ["b", "a", "b"]}, ["test", "b"]),
        ("domain-shift", {"to": "b"}, ["test", "b"]),
        ("corruption", {"corruptions": ["fog", "motion_blur"], "severity": 2}, ["test", "fog-2", "motion_blur-2"]),
        ("eps-curve", {"eps": ["1/255", "2/255"]}, ["test", "test"]),
        ("eps-curve", {"eps": ["1/255", "2/510", "2/255"]}, ["test", "test"]),
    ],
)
def test_what_protocols_evaluate(protocol: str, more: dict[str, Any], splits: list[str]) -> None:
    block = Block(protocol=protocol, data=("a",), methods=("m",), **more)
    PROTOCOLS[protocol].check(block)
    evals = PROTOCOLS[protocol].evals(block, VIEW)
    assert [spec.split for spec in evals] == splits
    assert len({spec.name for spec in evals}) == len(evals)
    known = {spec.name for spec in evals}
    metrics = PROTOCOLS[protocol].metrics(evals)
    assert all(name in known for metric in metrics for name, _ in metric.parts)
    assert any(metric.main for metric in metrics)


def test_corruptions_and_targets_of_a_protocol() -> None:
    block = Block(protocol="corruption", data=("a",), methods=("m",), corruptions=("fog",))
    assert [spec.corruption for spec in PROTOCOLS["corruption"].evals(block, VIEW)] == [None, "fog:3"]
    block = Block(protocol="domain-shift", data=("a",), methods=("m",), to=("b",))
    assert [(spec.data, spec.names) for spec in PROTOCOLS["domain-shift"].evals(block, VIEW)] == [
        ("a", "own"),
        ("b", "kept"),
    ]


def test_another_model_of_a_method_is_found_at_the_root_and_known_by_its_weights(tmp_path: Path, write: Write) -> None:
    for name, seed in [("a/clip", 1), ("b/moved", 1), ("a/other", 2)]:
        save_clip(tmp_path / name, seed=seed)

    def job(root: str, teacher: str, setting: str = "teacher_model") -> Job:
        target = "adversarial" if setting == "robust_teacher" else "clean"
        methods = {
            "zero-shot": None,
            "vlp": "vlp",
            "advvlp": {"name": "apd", setting: teacher, "soft_target": target},
        }
        jobs = make_plan(load_suite(write(methods=methods, root=root))).jobs.values()
        return next(job for job in jobs if job.config is not None and job.config.method.name == "apd")

    one, moved = job("a", "./clip"), job("b", "./moved")
    assert one.config is not None
    assert one.config.method.other_models() == {"teacher_model": str(tmp_path / "a" / "clip")}
    assert one.id == moved.id
    others = [job("a", "./other"), job("a", "./clip", "robust_teacher"), job("a", str(tmp_path / "a" / "other"))]
    assert [other.id == one.id for other in others] == [False, False, False] and others[0].id == others[2].id
    with refused("model", "'./none'"):
        job("a", "./none")


def test_a_plan_survives_its_file(write: Write) -> None:
    plan = make_plan(load_suite(write()))
    assert Plan.from_json(plan.to_json()).rows == plan.rows
    assert [entry.seed for entry in plan.rows] == [None, 0, 1, 0, 1]


def test_on_validation_images_the_clip_as_it_is_has_seeds_too(write: Write) -> None:
    assert [entry.seed for entry in make_plan(load_suite(write(split="val"))).rows] == [0, 1] * 3


def test_another_number_of_validation_images_is_another_run(write: Write) -> None:
    file = write(split="val")
    raw = yaml.safe_load(file.read_text())
    usual = make_plan(load_suite(file))
    raw["data"]["colours"]["validation"] = 3
    file.write_text(yaml.safe_dump(raw))
    more = make_plan(load_suite(file))
    assert len(usual.jobs) == len(more.jobs) and not set(usual.jobs) & set(more.jobs)
    sizes = [
        len(next(iter(p.jobs.values())).data["colours"].model_copy(update={"shots": 1}).load().val)
        for p in (usual, more)
    ]
    assert sizes == [3, 6], "one a class of three, and as many as there are"


def test_every_suite_of_the_repository_has_a_line_in_the_page() -> None:
    page = (SUITES.parent / "docs" / "bench.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and ".yaml`" in line]
    assert sorted(rows) == sorted(file.name for file in SUITES.glob("*.yaml"))


@pytest.mark.parametrize("name", [file.stem for file in sorted(SUITES.glob("*.yaml"))])
def test_suites_of_the_repository_are_sound(name: str) -> None:
    raw = yaml.safe_load((SUITES / f"{name}.yaml").read_text())
    suite = Suite.model_validate({key: value for key, value in raw.items() if key != "root"})
    assert suite.name == name and suite.blocks
    suite.check_settings()


def test_each_addition_has_a_row_that_differs_from_it_in_nothing_else() -> None:
    """Features and layers have the frozen teacher, other rows a chosen one: each needs an apd of its own kind beside it."""
    raw = yaml.safe_load((SUITES / "additions.yaml").read_text())
    suite = Suite.model_validate({key: value for key, value in raw.items() if key != "root"})
    for block in suite.blocks:
        teachers = {}
        for method in block.methods:
            found = suite.run_config(block.data[0], method).method
            if found.name == "apd":
                teachers[method] = found.settings.model_dump()["teacher"]
        plain = {teachers[method] for method in ("apd", "apd, frozen teacher") if method in teachers}
        assert plain == set(teachers.values())


def test_the_testbed_suite_has_the_core_on_three_seeds_and_every_method_on_one() -> None:
    suite = Suite.model_validate(yaml.safe_load((SUITES / "testbed.yaml").read_text()))
    few, new = ([block for block in suite.blocks if block.protocol == p] for p in ("few-shot", "base-to-new"))
    assert (set(few[0].methods), set(few[0].data), few[0].seeds) == (CORE, {"cifar10", "caltech101"}, (0, 1, 2))
    assert (set(new[0].methods), set(new[0].data), new[0].seeds) == (CORE, {"caltech101", "tiny-imagenet"}, (0, 1, 2))
    for name in ("cifar10", "caltech101", "dtd10"):
        shown = {method for block in few if name in block.data for method in block.methods}
        assert shown >= set(suite.methods) - {"apd tuned", "apd online"}, "teachers are compared where there is time"


def test_the_demo_suite_has_the_settings_of_the_demo() -> None:
    raw = yaml.safe_load((SUITES / "demo.yaml").read_text())
    suite, digits = Suite.model_validate(raw), raw["data"]["digits"]
    assert (suite.model, digits["source"], digits["eps"]) == (DEMO.model, DEMO.data, DEMO.eps)
    assert (suite.attacks, suite.limit, digits["train"]) == (DEMO.attacks, DEMO.limit, {"epochs": DEMO.epochs})
    assert suite.data["digits"].shots == DEMO.shots
    rows = {
        label: {**row.method, **({"data": row.data} if row.data else {}), **({"train": row.train} if row.train else {})}
        for label, row in METHODS.items()
    }
    assert suite.methods.items() >= {"zero-shot": None, **rows}.items()


def test_the_demo_takes_as_many_optimiser_steps_in_every_row() -> None:
    batch = TrainSettings().batch_size
    for row in METHODS.values():
        data = load_data(DEMO.data, shots=DEMO.shots, **row.data)
        batches = math.ceil((len(data.train) + len(data.unlabelled)) / batch)
        assert batches * row.train.get("epochs", DEMO.epochs) == 220


def test_without_an_attack_the_table_has_clean_accuracy_alone(write: Write) -> None:
    (block,) = load_suite(write(attacks=["clean"])).blocks[:1]
    spec = EvalSpec("test", "test", "a", "1/255", ("clean",), None)
    assert [m.name for m in PROTOCOLS["few-shot"].metrics(PROTOCOLS["few-shot"].evals(block, spec))] == ["clean"]


def test_every_attack_has_a_price() -> None:
    prices = {name: attack_passes(name.replace("N", "20").replace("-P", "-5"), 10) for name in EVALUATION}
    assert prices.pop("clean") == 0 and all(price > 0 for price in prices.values())
    assert prices["pgd-N"] == 20 and prices["autoattack"] > 10 * prices["apgd-ce"]


def test_published_numbers_name_source_and_setting() -> None:
    for entry in load_published():
        assert entry.source and entry.setting and entry.protocol in PROTOCOLS
        assert all(len(values) == len(entry.columns) for values in entry.rows.values())
    shown = "\n".join(published_markdown("base-to-new", 224))
    assert "| FAP | 70.52 | 38.05 | 49.58 | 21.86 |" in shown
    assert published_markdown("corruption", 224) == []
    assert published_markdown("base-to-new", 32) == published_markdown("base-to-new", None) == [], "not of such images"


@pytest.mark.parametrize(
    ("own", "row"),
    [
        ({"shots": 0, "unlabelled": "rest"}, {}),
        ({"unlabelled": "rest", "unlabelled_limit": 9}, {"unlabelled_limit": 2}),
        ({"unlabelled": "rest"}, {"unlabelled_limit": 2}),
        ({"unlabelled": "rest", "unlabelled_limit": 9}, {"unlabelled": None}),
    ],
)
def test_the_unlabelled_images_of_a_data_set_are_those_of_its_rows(
    write: Write, colours: Path, own: dict[str, Any], row: dict[str, Any]
) -> None:
    data = {"colours": {"source": str(colours), "eps": "8/255", "shots": 1, **own}}
    methods = {"apd": {"name": "apd", **({"data": row} if row else {})}}
    block = {"protocol": "few-shot", "data": "colours", "methods": "apd"}
    (job,) = make_plan(load_suite(write(data=data, methods=methods, blocks=[block], against=None))).jobs.values()
    assert job.config is not None and job.config.data.unlabelled == row.get("unlabelled", "rest")
    if "unlabelled" in row:
        return
    assert job.config.data.unlabelled_limit == row.get("unlabelled_limit", own.get("unlabelled_limit"))
    del data["colours"]["unlabelled"]
    data["colours"].pop("unlabelled_limit", None)
    with refused("unlabelled"):
        make_plan(load_suite(write(data=data, methods=methods, blocks=[block], against=None)))


def test_a_row_without_labels_is_not_the_run_with_them(write: Write) -> None:
    rest = {"unlabelled": "rest"}
    methods = {
        "zero-shot": None,
        "apd": {"name": "apd", "data": rest},
        "none": {"name": "apd", "data": rest | {"shots": 0}},
    }
    block = {"protocol": "few-shot", "data": "colours", "methods": ["apd", "none"], "shots": 1}
    jobs = make_plan(load_suite(write(methods=methods, blocks=[block], against=None))).jobs.values()
    assert sorted(job.config.data.shots for job in jobs if job.config is not None) == [0, 1]


def test_a_norm_is_part_of_the_budget_of_training_and_attacks(write: Write, colours: Path) -> None:
    def planned(**entry: Any) -> Plan:
        data = {"colours": {"source": str(colours), "shots": 2, **entry}}
        block = {"protocol": "eps-curve", "data": "colours", "methods": ["zero-shot", "advvlp"], "eps": ["0.5", "2"]}
        return make_plan(load_suite(write(data=data, blocks=[block])))

    plan = planned(eps="1.5", norm="l2")
    assert [spec.name for spec in plan.rows[0].evals.values()] == ["eps l2 0.5", "eps l2 2"]
    (config,) = [job.config for job in plan.jobs.values() if job.config]
    assert (config.train.norm, config.train.eps) == ("l2", "1.5")
    assert Plan.from_json(plan.to_json()).rows == plan.rows
    with refused("eps", "2"):
        planned(eps="0.5")
    block = Block(protocol="few-shot", data=("a",), methods=("m",))
    (linf,) = PROTOCOLS["few-shot"].evals(block, VIEW)
    assert "norm" not in linf.record(), "plans of before know no norm"


@pytest.mark.parametrize("protocol", ["few-shot", "base-to-new"])
@pytest.mark.parametrize(
    ("split", "limit", "said"), [("val", None, "all validation images"), ("test", 6, "at most 6 test images")]
)
def test_tables_say_which_images_they_are_of(
    write: Write, protocol: str, split: str, limit: int | None, said: str
) -> None:
    block = {"protocol": protocol, "data": "digits", "methods": "advvlp", "seeds": 0}
    data = {"digits": {"source": "digits", "eps": "8/255", "shots": 2}}
    plan = make_plan(load_suite(write(split=split, limit=limit, data=data, blocks=[block])))
    assert {spec.images for row in Plan.from_json(plan.to_json()).rows for spec in row.evals.values()} == {said}


def test_evaluations_that_a_table_cannot_tell_apart_are_refused(write: Write) -> None:
    data = {name: {"source": "digits", "eps": "8/255"} for name in ("home", "again")}
    block = {"protocol": "cross-dataset", "data": "home", "to": "again", "methods": "apd"}
    with refused("data.home", "data.again", "same images"):
        make_plan(load_suite(write(data=data, methods={"apd": "apd"}, blocks=[block])))


def test_too_few_classes_for_two_halves_are_told_before_a_training(write: Write) -> None:
    block = {"protocol": "base-to-new", "data": "colours", "methods": "advvlp"}
    with refused("data.colours", "classes=new", "1 of 3"):
        make_plan(load_suite(write(blocks=[block])))


def test_a_transferred_attack_counts_with_the_model_its_images_are_made_on(
    write: Write, clip_folder: Path, shallow_folder: Path, tmp_path: Path
) -> None:
    def views(*attacks: str) -> set[str]:
        plan = make_plan(load_suite(write(attacks=[*attacks]), root=tmp_path))
        return {key for job in plan.jobs.values() for key in job.evals}

    source = shutil.copytree(shallow_folder, tmp_path / "source")
    before = views(f"transfer:{source}")
    assert views(f"transfer:{source}") == before
    shutil.rmtree(source)
    shutil.copytree(clip_folder, source)
    for known in (encoder, encoder_info):
        known.cache_clear()
    assert not views(f"transfer:{source}") & before
    with refused("attacks", "transfer:./source", "whole path"):
        views("transfer:./source")
    assert views("transfer:zero-shot")


def test_data_of_the_hub_count_with_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    images = DataSettings(source="digits", seed=0)
    known = whole(images)
    monkeypatch.setattr("apd.bench.identity.whole", lambda settings: known)
    one, other = (data_identity(DataSettings(source=f"hf:owner/corrupted:{kind}", seed=0)) for kind in ("fog", "snow"))
    assert one != other
