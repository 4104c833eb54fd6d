"""The benchmark's own code: both sides of a comparison compute the same, and the floor is no more than it must be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import apd
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.methods import Step
from apd.models.fast import kernels
from apd.models.prompts import Prompts
from benchmarks.__main__ import main
from benchmarks.cases import CONTRACT, Case, Options, Results, run
from benchmarks.evaluation import Subject, agreement, attack_case, foolbox_pgd, pyautoattack, same_logits, twins
from benchmarks.flops import counted, formulas
from benchmarks.geometry import CONTEXT, GEOMETRIES, class_names, cut_length, save
from benchmarks.measure import Side, compared, interleaved, matmul_rate
from benchmarks.page import BEGIN, END, NOTHING, write_page
from benchmarks.profile import OPERATORS, PARTS, profile, profile_ours, profile_published
from benchmarks.startup import FIRST_STEP, photos, waiting_case
from benchmarks.step import THREAT, Problem, floor, ours, problem, published
from benchmarks.step_rows import FLOORS, marginal_case, method_settings, predicted
from benchmarks.switches import PASSES, STEPS, epoch, switch_case
from benchmarks.towers import Towers

MINI = GEOMETRIES["mini"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(MINI, tmp_path_factory.mktemp("models") / "mini")


def build(folder: Path, kind: str, batch: int = 3, classes: int = 12, dtype: torch.dtype = torch.float32) -> Problem:
    encoder = apd.load_clip(folder, dtype=dtype)
    p = problem(encoder, Towers.load(folder, encoder, dtype), *method_settings(kind, MINI), batch, classes)
    return replace(p, method=p.method.to(dtype), x=p.x.to(dtype))


def gradients(p: Problem) -> dict[str, Tensor]:
    return {name: q.grad.clone() for name, q in p.method.named_parameters() if q.grad is not None}


def test_ours_and_the_published_step_agree_on_the_same_adversarial_images(folder: Path) -> None:
    p = build(folder, "fap")
    x_adv = THREAT.random_start(p.x, torch.arange(3) + 7)
    theirs = published(p, x_adv)
    wanted = gradients(p)
    p.method.zero_grad()
    loss = sum(p.method.loss(Step(Batch.of(p.x, p.labels), p.method.student.bind()), x_adv).values())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs), rel=1e-5)
    assert wanted.keys() == gradients(p).keys() and wanted
    for name, gradient in gradients(p).items():
        assert float((gradient - wanted[name]).norm()) <= 1e-5 * float(wanted[name].norm()), name


def test_a_whole_step_agrees_in_float64(folder: Path) -> None:
    p = build(folder, "fap", dtype=torch.float64)
    theirs, wanted = published(p), gradients(p)
    mine = ours(p)()
    assert float(mine) == pytest.approx(float(theirs), rel=1e-9)
    for name, gradient in gradients(p).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-10)
    assert float(published(p, own_kernels=True)) == pytest.approx(float(theirs), rel=1e-9), "other kernels, same step"


def test_towers_are_the_encoder_s(folder: Path) -> None:
    p = build(folder, "fap")
    encoder, prompts = p.method.student.encoder, p.prompts
    with torch.no_grad():
        for towers in (p.bare(False), p.bare(True)):
            for mine, theirs in (
                (encoder.encode_image(p.x, prompts.visual()), towers.image(p.x, prompts.visual())),
                (encoder.encode_image(p.x), towers.image(p.x)),
                (encoder.encode_text(p.ids(), prompts.text()), towers.text(p.ids(), prompts.text())),
            ):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FLOORS)
def test_passes_are_counted_right(folder: Path, kind: str) -> None:
    """The floor does the passes that it claims, ours no more than those."""
    p = build(folder, kind)
    ours(p)()  # what is computed once a run
    bare, mine = counted(floor(p, **FLOORS[kind][0])), counted(ours(p))
    # A prediction takes the backward of attention for one forward, and leaves out projections.
    assert bare == pytest.approx(predicted(kind, MINI, 3, 12)[0], rel=0.05)
    assert 0.4 * bare < mine <= bare, "ours shares prefixes and leaves out rows, and does all else"
    with patch.object(kernels, "_onednn", return_value=False):
        assert counted(ours(p)) == mine, "by torch's own formulas"
    assert counted(floor(p, **FLOORS[kind][0], own_kernels=False)) == bare
    assert counted(floor(p, **FLOORS[kind][0]), shapes_only=True) == bare


def test_the_published_step_multiplies_as_often_as_its_formula_says(folder: Path) -> None:
    batch, classes, passes = 3, 12, 6
    p = build(folder, "fap", batch, classes)
    image, text = batch * MINI.image_gflop(2), classes * MINI.text_gflop(CONTEXT)
    rows = (MINI.image_size // MINI.patch) ** 2
    patches = 2 * batch * rows * 3 * MINI.patch**2 * MINI.visual_width / 1e9
    attention = batch * MINI.visual_depth * MINI.visual_width * (rows + 3) ** 2
    attention = 4 * (attention + classes * MINI.text_depth * MINI.text_width * CONTEXT**2) / 1e9
    projections = 2 * MINI.embed_dim * (batch * MINI.visual_width + classes * MINI.text_width) / 1e9
    logits = 2 * batch * classes * MINI.embed_dim / 1e9
    coupling = 2 * 2 * MINI.text_width * MINI.visual_width * len(p.prompts.text()) / 1e9
    forward = image + text + projections + logits + coupling
    # Backward: attention recomputes its scores, logits and coupling have two factors that take gradients, pixels take
    # theirs in the attack's two steps only.
    backward = image - patches + text + 1.5 * attention + projections + 2 * (logits + coupling)
    wanted = passes * (forward + backward) + 2 * patches
    assert counted(lambda: published(p), shapes_only=True) == pytest.approx(wanted, rel=1e-12)
    p.method.zero_grad()
    assert counted(lambda: published(p, own_kernels=True)) == pytest.approx(wanted, rel=1e-12)
    assert predicted("fap", MINI, batch, classes)[1] == pytest.approx(wanted, rel=0.15)


def test_no_product_of_a_step_goes_uncounted(folder: Path) -> None:
    class Names(TorchDispatchMode):
        seen: ClassVar[set[Any]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    p, online = build(folder, "fap", 2, 3), build(folder, "apd-online", 2, 3)
    with Names():
        for step in (ours(p), ours(replace(p, bf16=True)), ours(online), lambda: published(p)):
            step()
    products = {op for op in Names.seen if re.search(r"mm|conv|linear|attention|matmul|einsum|dot", str(op))}
    assert len(products) >= 6 and products <= {*flop_registry, *formulas()}


def test_attention_counts_as_its_products() -> None:
    q, k, v = (torch.rand(2, 3, 5, 8) for _ in range(3))
    with sdpa_kernel(SDPBackend.MATH):
        products = counted(lambda: F.scaled_dot_product_attention(q, k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert counted(lambda: F.scaled_dot_product_attention(q, k, v)) == products == 2 * 2 * 2 * 3 * 5 * 5 * 8 / 1e9


def test_counts_are_rows_of_their_own_file(tmp_path: Path) -> None:
    chosen = ["--only", "*fap*", "*online*", "--geometry", "mini", "--label", "here", "--results", str(tmp_path)]
    with patch("benchmarks.flops.counted", lambda function, shapes_only=False: counted(function)):  # faster when small
        main(["--quick", "--suite", "flops", *chosen])
    rows = {row["name"]: row for row in json.loads((tmp_path / "flops-here.json").read_text())}
    assert rows.keys() == {f"{kind}-step-b4-c20-mini" for kind in ("fap", "apd-online")}
    fap, apd_row = rows["fap-step-b4-c20-mini"], rows["apd-online-step-b4-c20-mini"]
    assert fap["times_fewer"] == fap["reference_gflop"] / fap["ours_gflop"] > 1 and fap["ours_s"] is None
    assert "reference_gflop" not in apd_row and 0 < apd_row["ours_gflop"] < apd_row["floor_gflop"]


def test_class_names_are_different_and_cut_where_the_floor_says(folder: Path) -> None:
    assert len(set(class_names(10_000))) == 10_000
    encoder = apd.load_clip(folder)
    for count in (10, 30):
        ids = encoder.prompt_ids([f"{name}." for name in class_names(count)], 2)
        assert encoder.trim(ids).shape == (count, cut_length(2)) and cut_length(2) == 12


def test_rounds_take_turns_and_ratios_are_paired() -> None:
    seconds = {"ours": iter([1, 2, 1]), "floor": iter([1, 1, 2]), "reference": iter([10, 40])}
    order: list[str] = []
    now = [0.0]

    def function(name: str) -> Any:
        def work() -> None:
            order.append(name)
            now[0] += next(seconds[name])

        return work

    counts = {"ours": 3, "floor": 3, "reference": 2}
    times = interleaved({n: function(n) for n in counts}, counts, torch.device("cpu"), clock=lambda: now[0])
    assert order == ["ours", "floor", "reference", "floor", "reference", "ours", "ours", "floor"]
    row = compared(times)
    assert (row["ours_s"], row["reference_s"], row["floor_s"]) == (1, 25, 1)
    assert row["ratio_reference"] == 15 and row["spread"]["ratio_reference"] == [12.5, 17.5]
    assert row["ratio_floor"] == 1.0 and row["spread"]["ratio_floor"] == [0.75, 1.5]
    assert row["rounds"] == {"ours": 3, "reference": 2, "floor": 3}
    more = compared({"ours": [2.0], "floor": [1.0], "floor_default_kernels": [4.0], "reference_our_kernels": [8.0]})
    assert more["ratio_floor_default_kernels"] == 0.5 and more["ratio_reference_our_kernels"] == 4
    assert more["floor_default_kernels_s"] == 4 and more["rounds"]["reference_our_kernels"] == 1
    one = compared({"ours": [2.0], "floor": [1.0]})
    assert one["ratio_floor"] == 2 and one["ratio_reference"] is None and one["spread"]["ratio_floor"] is None


def test_who_has_taken_long_has_no_further_round() -> None:
    now = [0.0]

    def work(seconds: float) -> Any:
        return lambda: now.__setitem__(0, now[0] + seconds)

    sides = {"ours": work(1), "reference": work(57), "slow": work(61)}
    counts = dict.fromkeys(sides, 5)
    times = interleaved(sides, counts, torch.device("cpu"), patience=60, clock=lambda: now[0])
    assert {name: len(found) for name, found in times.items()} == {"ours": 5, "reference": 2, "slow": 1}


def test_the_prediction_follows_rounds_and_patience() -> None:
    cpu = torch.device("cpu")
    hour = matmul_rate(cpu, own_kernels=True) * 3600
    once = Side(hour, 1).seconds(cpu)
    assert once >= 3600 and Side(hour, 5).seconds(cpu) == once, "no second round of what takes longer than patience"
    assert Side(hour / 1e6, 5, warm=1).seconds(cpu) == pytest.approx(6 * once / 1e6)
    case = Case("row", {}, dict, {"ours": Side(hour, 1), "floor": Side(hour, 1)}, seconds=5)
    assert case.predicted(cpu) == pytest.approx(2 * once + 5)


def test_a_plan_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["--quick", "--plan", "--suite", "step", "growth", "--only", "*-c20*", "growth-b*", "--results", str(tmp_path)]
    )
    shown = capsys.readouterr().out
    assert "step: 3 rows" in shown and "growth: 2 rows" in shown and "fap-step-b4-c20: about" in shown
    assert not list(tmp_path.iterdir())


def test_a_known_row_is_not_measured_again(tmp_path: Path) -> None:
    file, calls = tmp_path / "step.json", []

    def case(size: int) -> Case:
        return Case("row", {"size": size}, lambda: calls.append(size) or {"ours_s": 1.0})

    def again(options: Options, size: int) -> None:
        run([case(size)], Results(file, options), say=lambda _: None)

    quick = Options(quick=True)
    again(quick, 1), again(quick, 1)
    assert calls == [1]
    again(quick, 2)
    assert calls == [1, 2], "other settings"
    again(Options(), 2)
    assert calls == [1, 2, 2], "a quick row is not a full one"
    again(quick, 2), again(Options(), 2)
    assert calls == [1, 2, 2], "but a full one is enough"
    again(replace(quick, again=True), 2), again(replace(quick, only=("other",)), 3)
    assert calls == [1, 2, 2, 2]
    (row,) = json.loads(file.read_text())
    assert set(CONTRACT) | {"machine"} <= row.keys() and row["floor_s"] is None
    file.write_text(json.dumps([row | {"machine": "another"}]))
    assert Results(file, quick).rows == []


def test_the_quick_suite_fits_what_it_does_not_measure(tmp_path: Path) -> None:
    main(["--quick", "--suite", "step", "--geometry", "mini", "--results", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads((tmp_path / "step.json").read_text())}
    headline, far = rows["fap-step-b4-c100-mini"], rows["fap-step-b4-c1000-mini"]
    assert headline["extrapolated"] and headline["fitted"].keys() == {"reference"} and headline["rounds"]["ours"] == 2
    assert far["fitted"]["ours"]["classes"] == [2, 20, 100] and far["fitted"]["reference"]["classes"] == [2, 20]
    line = far["fitted"]["reference"]
    assert headline["reference_s"] == pytest.approx(line["a"] + 100 * line["b"])
    assert headline["ratio_reference"] == pytest.approx(headline["reference_s"] / headline["ours_s"])
    assert not rows["fap-step-b4-c20-mini"]["extrapolated"]
    assert rows["apd-online-step-b4-c20-mini"]["floor_s"] and rows["apd-online-step-b4-c20-mini"]["reference_s"] is None


def test_a_marginal_class_is_a_difference(tmp_path: Path) -> None:
    def in_turn(functions: dict[str, Any], sides: object, device: object) -> dict[str, list[float]]:
        """Runs everything once, and says that a class takes 2 ms of ours and 5 ms bare, beside 1 s of all else."""
        for function in functions.values():
            function()
        cost = {"ours": 0.002, "floor": 0.005, "floor_default_kernels": 0.01}
        return {name: [1 + cost[name.split()[0]] * int(name.split()[1])] * 2 for name in functions}

    with patch("benchmarks.step_rows.take_turns", in_turn):
        row = marginal_case(Options(geometry="mini", results=tmp_path), few=10, many=200, rounds=2).measure()
    assert (row["ours_s"], row["floor_s"]) == pytest.approx((0.002, 0.005)) and row["ratio_floor"] == pytest.approx(0.4)


@pytest.mark.parametrize("kind", PASSES)
def test_a_switch_takes_the_passes_that_its_prediction_counts(tmp_path: Path, kind: str) -> None:
    options = Options(geometry="mini", results=tmp_path)
    run = epoch(options, "mini", 4, 5, kind)
    encoder, _ = options.load("mini")
    run()  # the teacher's class features
    calls = {"forward": 0.0}
    tower = encoder.encode_image
    with patch.object(
        encoder, "encode_image", lambda *a: (calls.__setitem__("forward", calls["forward"] + 1), tower(*a))[1]
    ):
        run()
    # Every student's forward has a backward, the teacher's has none.
    teacher = 1 if kind == "free" else STEPS
    assert (2 * (calls["forward"] - teacher) + teacher) / STEPS == pytest.approx(PASSES[kind])


def test_a_switch_stands_beside_pgd(tmp_path: Path) -> None:
    case = switch_case(Options(geometry="mini", results=tmp_path), "free", "mini", 4, 5, rounds=2)
    row = case.measure()
    assert case.name == "apd-step-free-b4-c5-mini" and row["floor_s"] is None
    assert row["ratio_reference"] > 0 and row["rounds"]["reference"] == 2


@pytest.mark.parametrize("kind", ["fap", "apd-online"])
def test_a_watched_step_is_the_step(folder: Path, kind: str) -> None:
    p = build(folder, kind)
    ours(p)()
    wanted = gradients(p)
    found = profile_ours(p)
    for name, gradient in gradients(p).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)
    texts, images = (1, 4) if kind == "fap" else (2, 4)
    assert found.calls == dict(zip(PARTS, (texts, texts, images, images), strict=True))
    assert all(seconds > 0 for seconds in found.seconds.values()) and found.operators.keys() == OPERATORS.keys()
    assert sum(found.operators.values()) <= 1.5 * found.total
    if kind == "fap":
        published(p)
        wanted = gradients(p)
        before = profile_published(p)
        assert set(before.calls.values()) == {6}
        for name, gradient in gradients(p).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)


def test_a_profile_is_a_table_of_before_and_after(tmp_path: Path) -> None:
    profile(Options(quick=True, geometry="mini", results=tmp_path), ("fap", "apd-online"))
    both, ours_alone = ((tmp_path / f"profile-{kind}-mini.md").read_text() for kind in ("fap", "apd-online"))
    assert "| part | published (s) | share | ours (s) | share |" in both and "| part | ours (s) | share |" in ours_alone
    assert all(f"| {part} |" in both for part in (*PARTS, *OPERATORS, "all"))


def test_libraries_attack_the_same_function(folder: Path) -> None:
    encoder = apd.load_clip(folder)
    prompts = Prompts.initial(apd.PromptSpec(text_tokens=2, visual_tokens=2), encoder).requires_grad_(False)
    classifier = apd.PromptedCLIP(encoder, prompts, class_names(10))
    beside = twins(classifier, Towers.load(folder, encoder))
    x = torch.rand(3, 3, 32, 32)
    same_logits(classifier, beside, x)
    with torch.no_grad():
        prompts.text_tokens[0].normal_()
    with pytest.raises(AssertionError, match="not close"):
        same_logits(classifier, beside, x)
    y = classifier(x).argmax(1)
    keeping = beside["floor"]
    for images in (foolbox_pgd(keeping, x, y, 1 / 255, 2), pyautoattack(keeping, x, y, 1 / 255, "apgd-ce")):
        assert images.shape == x.shape and float((images - x).abs().max()) <= 1 / 255 + 1e-6


def test_images_may_come_in_parts(folder: Path) -> None:
    encoder = apd.load_clip(folder)
    prompts = Prompts.initial(apd.PromptSpec(text_tokens=2, visual_tokens=2), encoder).requires_grad_(False)
    classifier = apd.PromptedCLIP(encoder, prompts, class_names(10))
    x = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        y = classifier(x.float() / 255).argmax(1)
    images = Decoded(x, y, tuple("abcde"))
    whole = Subject(classifier, twins(classifier, Towers.load(folder, encoder)), images, "1/255")
    with patch("benchmarks.evaluation.subject", return_value=whole):
        halves, one = (attack_case(Options(), "pgd-2", 5, 1, parts=parts).measure() for parts in (2, 1))
    assert halves["rounds"] == {"ours": 2, "reference": 0, "floor": 2} and halves["reference_s"] is None
    assert one["rounds"]["reference"] == one["rounds"]["floor_default_kernels"] == 1
    assert halves["robust_ours"] == one["robust_ours"], "the same images from the same starts"


def test_agreement_counts_both_ways() -> None:
    mine = torch.tensor([True, True, True, False, False])
    theirs = torch.tensor([False, True, False, True, False])
    found = agreement(mine, theirs)
    assert found["disagreement"] == pytest.approx(0.6) and found["p_more_robust"] == pytest.approx(0.5)
    assert agreement(mine, mine)["p_more_robust"] == 1.0
    assert agreement(torch.ones(6).bool(), torch.zeros(6).bool())["p_more_robust"] == pytest.approx(1 / 64)


def test_a_point_of_growth_has_seconds_and_memory_or_says_that_it_does_not_fit(folder: Path) -> None:
    small = {"folder": str(folder), "device": "cpu", "rounds": 1, "classes": 5, "batch": 2, "steps": 1, "depth": 2}
    large = small | {"classes": 5000}
    code = f"""
import json
from benchmarks import growth
fits = growth.measure({small})
growth.memory_available = lambda: 10**8
print(json.dumps([fits, growth.measure({large})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fits, burst = json.loads(done.stdout.splitlines()[-1])
    assert fits["ours_s"] > 0 and fits["peak_mb"] >= fits["memory_before_mb"] > 50
    assert burst["out_of_memory"] and "ours_s" not in burst


def test_the_page_shows_what_the_files_hold_and_keeps_the_rest(tmp_path: Path) -> None:
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir(), results.mkdir()
    page = docs / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(results, docs)
    assert page.read_text() == f"before\n{BEGIN}\n\n{NOTHING}\n\n{END}\nafter\n"

    def write(suite: str, *rows: dict[str, Any]) -> None:
        options = Options(quick=True)
        kept = Results(results / f"{suite}.json", options)
        for row in rows:
            kept.add(Case(row.pop("name"), row.pop("settings", {}), dict), row, 0.1)

    measured = compared({"ours": [1.0, 1.0], "reference": [12.0, 14.0], "floor": [1.0, 0.5]})
    write("step", {"name": "fap-step-b4-c20", **measured})
    guess = {"name": "far", **measured, "extrapolated": True, "fitted": {"ours": {}, "reference": {}}}
    write("step", guess)
    sizes = {"batch": 4, "steps": 2, "image_size": 32, "depth": 3}
    write(
        "growth",
        *(
            {"name": f"growth-classes-{c}", "settings": {"classes": c, **sizes}, "ours_s": c / 10, "peak_mb": 100.0}
            for c in (10, 1000)
        ),
        {"name": "growth-classes-9999", "settings": {"classes": 9999, **sizes}, "out_of_memory": True},
    )
    (results / "profile-fap.md").write_text("### tables of a profile\n")
    (results / "profile-fap-mini.md").write_text("### tables of another\n")
    write("step-other", {"name": "fap-step-b4-c20", **compared({"ours": [1.0], "reference": [11.0]})})
    write("flops", {"name": "fap-step-b4-c20", "ours_gflop": 2.0, "reference_gflop": 24.0, "times_fewer": 12.0})
    write_page(results, docs)
    text = page.read_text()
    assert "| fap-step-b4-c20 | 2 | 24 | 12 |  |  | 11 (2), 13 (1) |" in text and "### flops" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| fap-step-b4-c20 | 1 | 13 | 0.75 | 13 [12.5, 13.5] | 1.5 [1.25, 1.75] | 2 / 2 / 2 | quick |" in text
    assert "tables of a profile" in text and "tables of another" not in text
    assert "extrapolated: ours, reference" in text and "out of memory" in text
    pictures = {file.name for file in (docs / "benchmarks").iterdir()}
    assert pictures == {"step.svg", "step-other.svg", "growth-classes.svg"}
    before = (docs / "benchmarks" / "step.svg").read_bytes()
    write_page(results, docs)
    assert (docs / "benchmarks" / "step.svg").read_bytes() == before and page.read_text() == text


def test_the_speeds_that_are_quoted_are_those_of_the_files() -> None:
    root = Path(__file__).parents[1]

    def rows(suite: str) -> dict[str, dict[str, Any]]:
        found = json.loads((root / "benchmarks" / "results" / f"{suite}.json").read_text())
        return {row["name"]: row for row in found}

    readme = (root / "README.md").read_text()
    lead = (root / "docs" / "benchmarks.md").read_text().split(BEGIN)[0]
    counts, two, one = (rows(suite) for suite in ("flops", "step", "step-one-core"))
    headline, measured = counts["fap-step-b4-c100"], two["fap-step-b4-c100"]
    assert headline["reference_gflop"] == pytest.approx(predicted("fap", GEOMETRIES["vit-b-32"], 4, 100)[1], rel=0.03)
    for figure in (headline["times_fewer"], measured["ratio_reference"], measured["ratio_reference_our_kernels"]):
        assert re.search(rf"\b{figure:.0f}\b", readme) and f"{figure:.1f}" in lead
    assert f"{headline['ours_gflop']:,.0f} GFLOP" in lead and f"{headline['reference_gflop']:,.0f} GFLOP" in lead
    for row in counts.values():
        assert row.get("times_fewer") is None or re.search(rf"\b{row['times_fewer']:.0f}\b", lead), row["name"]
    for name in ("fap-step-b4-c30", "fap-step-b4-c10"):
        for row in (two[name], one[name]):
            assert f"{row['ratio_reference']:.1f}" in lead and f"{row['ratio_reference_our_kernels']:.1f}" in lead


def test_the_first_step_is_noticed(tmp_path: Path, folder: Path) -> None:
    data = photos(tmp_path / "photos", 2, 3, side=32)
    words = [
        "train",
        str(data),
        "--model",
        str(folder),
        "--shots",
        "1",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "r"),
    ]
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, *words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("first step\n")


def test_the_wait_for_images_is_a_part_of_the_epoch(tmp_path: Path) -> None:
    row = waiting_case(Options(quick=True, geometry="mini", results=tmp_path), "mini", 2).measure()
    assert 0 < row["ours_s"] < row["epoch_s"] and row["share"] == row["ours_s"] / row["epoch_s"] and row["decode_s"] > 0
