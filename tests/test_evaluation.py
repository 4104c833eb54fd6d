"""Evaluation: what is counted, what is kept, what is computed again, and which results fail their health checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from torch import Tensor, nn

from apd import attacks
from apd.attacks import PGD, AttackBatch, Objective, cross_entropy, misclassified, sample_seeds
from apd.attacks.threat import ThreatModel
from apd.data.corruptions import corrupt
from apd.data.dataset import Dataset, Decoded, ImageSet
from apd.data.settings import DataSettings
from apd.errors import ApdError
from apd.evaluation import EvaluationSettings, evaluate, evaluate_tensors, parse_settings
from apd.evaluation.frozen import Subject
from apd.evaluation.statistics import wilson
from apd.evaluation.stored import write_result
from apd.models.classifier import PromptedCLIP
from apd.runs.output import summary_files

from .refusals import meant, refused
from .toys import SIDE, Counting, decoded, toy_clip, trained

NAMES = ("class a", "class b", "class c", "class d", "class e")
EPS = 0.04


def settings(**values: Any) -> EvaluationSettings:
    defaults: dict[str, Any] = {"attacks": ("pgd-5",), "eps": EPS, "checks": False, "batch_size": 16}
    return parse_settings(defaults | values)


def first(images: Decoded, n: int) -> Decoded:
    return Decoded(images.images[:n], images.labels[:n], images.ids[:n])


def data_of(n_classes: int, n: int = 40) -> Dataset:
    """A data set of the pictures, opened from memory."""
    images = decoded(n, n_classes)

    def opener(index: int) -> Any:
        return lambda: Image.fromarray(images.images[index].permute(1, 2, 0).numpy())

    test = ImageSet(images.ids, images.labels, tuple(opener(i) for i in range(n)))
    none = ImageSet((), torch.zeros(0, dtype=torch.int64), ())
    return Dataset(
        "pictures", DataSettings(source="memory"), NAMES[:n_classes], ("a photo of a {}.",), none, none, test
    )


# What is counted


def test_accuracies_agree_with_attacking_by_hand() -> None:
    model, images = trained(5), decoded(50, 5, seed=5)
    result = evaluate_tensors(model, images, NAMES, settings(attacks=("clean", "pgd-5", "apgd-ce"), batch_size=64))
    x, labels, threat = images.pixels(), images.labels, ThreatModel(EPS)
    clean = ~misclassified(model(x), labels)
    by_hand = {"clean": clean}
    objective = Objective(model, cross_entropy, labels)
    found = PGD(5, leave=misclassified)(objective, x, threat, sample_seeds(images.ids, 0, "start"))
    by_hand["pgd-5"] = clean & ~misclassified(model(found), labels)
    ids = [id_ for id_, right in zip(images.ids, clean.tolist(), strict=True) if right]
    apgd = attacks.find("apgd-ce")(model, AttackBatch(x[clean], labels[clean], ids), threat).images
    by_hand["apgd-ce"] = clean.clone()
    by_hand["apgd-ce"][clean] = ~misclassified(model(apgd), labels[clean])
    for name, right in by_hand.items():
        assert torch.equal(result.robust_mask(name), right), name
    assert torch.equal(result.robust_mask(), by_hand["pgd-5"] & by_hand["apgd-ce"])
    k = int(by_hand["apgd-ce"].sum())
    assert 0 < k < clean.sum() < 50
    score = result.attacks["apgd-ce"]
    assert score.accuracy == 2 * k
    assert score.interval == pytest.approx([100 * end for end in wilson(k, 50)], abs=0.006)
    assert result.clean == 2 * int(clean.sum()) and result.worst.accuracy == 2 * int(result.robust_mask().sum())
    assert sum(score.fooled_by.values()) == int((clean & ~by_hand["apgd-ce"]).sum())
    per_class = result.per_class["class b"]
    assert per_class.n == 10 and per_class.worst == 10 * int(result.robust_mask()[labels == 1].sum())
    assert per_class.clean == 10 * int(clean[labels == 1].sum())


def test_gradients_are_there_under_no_grad() -> None:
    """The forecast, the checks and the attacks take them, wherever a caller measures."""
    how = settings(attacks=("pgd-5",), batch_size=None, checks=True)
    outside = evaluate_tensors(trained(5), decoded(30, 5), NAMES, how)
    with torch.no_grad():
        inside = evaluate_tensors(trained(5), decoded(30, 5), NAMES, how)
    assert inside.predictions == outside.predictions and inside.checks == outside.checks and outside.checks


def test_pgd_does_not_depend_on_the_batch_size() -> None:
    model, images = trained(5), decoded(50, 5)
    one, other = (evaluate_tensors(model, images, NAMES, settings(batch_size=size)) for size in (50, 7))
    assert one.predictions == other.predictions and one.worst.accuracy < one.clean


def test_the_model_comes_back_as_it_was() -> None:
    model = trained(5).train().requires_grad_(True)
    model[0].weight.requires_grad_(False)
    torch.set_float32_matmul_precision("high")
    try:
        evaluate_tensors(model, decoded(10, 5), NAMES, settings())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert model.training and model[3].weight.requires_grad and not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_attacks_run_in_float32_even_under_autocast() -> None:
    kinds = set()

    class Spy(Counting):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            kinds.add((x.dtype, z.dtype))
            return z

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = evaluate_tensors(Spy(trained(5)), decoded(10, 5), NAMES, settings())
    assert kinds == {(torch.float32, torch.float32)} and result.precision == "float32"
    with refused("torch.bfloat16", "float32"):
        evaluate_tensors(trained(5).bfloat16(), decoded(10, 5), NAMES, settings())


def test_logits_that_are_not_finite_are_no_result() -> None:
    class Broken(Counting):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.flatten(1).mean(1, keepdim=True) < 0)

    with refused("logits", "10", by=ApdError):
        evaluate_tensors(Broken(trained(5)), decoded(10, 5), NAMES, settings())


@pytest.mark.parametrize(
    "values", [{"attacks": ("clean",)}, {"eps": 0}, {"attacks": ("pgd-2", "autoattack"), "eps": "0"}]
)
def test_clean_only_and_eps_zero(values: dict[str, Any]) -> None:
    result = evaluate_tensors(trained(5), decoded(40, 5, seed=5), NAMES, settings(checks=True, **values))
    assert result.worst.accuracy == result.clean < 100
    assert set(result.attacks) == set(values.get("attacks", ("pgd-5",))) - {"clean"}
    assert result.sound, result.checks


def test_autoattack_reports_its_parts_and_is_worst() -> None:
    model, images = trained(3), decoded(24, 3)
    result = evaluate_tensors(model, images, NAMES[:3], settings(attacks=("pgd-5", "autoattack"), eps=0.3, checks=True))
    auto = result.attacks["autoattack"]
    assert auto.runs == ("apgd-ce", "apgd-margin", "fab", "square")
    assert sum(auto.fooled_by.values()) == round((result.clean - auto.accuracy) * 24 / 100) > 0
    assert auto.accuracy <= result.attacks["pgd-5"].accuracy and result.worst.accuracy <= auto.accuracy
    assert auto.batch_sizes == (16,) and result.sound, result.checks


# Health checks


class Quantised(nn.Module):
    """Gradient masking: pixels are rounded, so gradients are zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model((x * 16).round() / 16)
        return z


class Randomised(Quantised):
    """Noise on the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x + 0.1 * torch.randn_like(x))
        return z


class BatchNormalised(Quantised):
    """Features normalised over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x - x.mean(dim=0) + 0.5)
        return z


class Saturated(Quantised):
    """Logits so large that the softmax is 1."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        return z * 1e4


@pytest.mark.parametrize(
    ("defence", "failed"),
    [
        (nn.Sequential, set()),
        (Quantised, {"zero gradients", "huge eps", "random noise"}),
        (Randomised, {"eps 0", "batch size"}),
        (BatchNormalised, {"batch size"}),
        (Saturated, {"zero gradients", "stronger attack"}),
    ],
)
def test_health_checks_fail_when_they_should(defence: type[nn.Module], failed: set[str]) -> None:
    model = defence(trained(5))
    result = evaluate_tensors(
        model, decoded(60, 5), NAMES, settings(attacks=("pgd-10",), eps=0.06, checks=True, batch_size=60)
    )
    found = {check.name for check in result.checks if check.passed is False}
    assert failed <= found and bool(found) == bool(failed), result.checks
    assert result.sound == (not failed)


def test_a_weak_attack_is_found_out() -> None:
    result = evaluate_tensors(
        trained(5), decoded(60, 5), NAMES, settings(attacks=("pgd-1",), eps=0.06, checks=True, batch_size=60)
    )
    assert [check.name for check in result.checks if check.passed is False] == ["stronger attack"]


def test_autoattack_flags_fail_a_result(few_queries: None) -> None:
    images = decoded(12, 5)
    values = settings(attacks=("autoattack",), eps=0.2, checks=True)
    failed = {
        c.name for c in evaluate_tensors(Randomised(trained(5)), images, NAMES, values).checks if c.passed is False
    }
    assert "autoattack: randomized" in failed
    masked = evaluate_tensors(Quantised(trained(5)), images, NAMES, values)
    assert masked.attacks["autoattack"].fooled_by["square"] > 0
    assert "autoattack: black-box" in {c.name for c in masked.checks if c.passed is False}


# A classifier and data


def test_evaluate_a_classifier_beside_the_undefended(tmp_path: Path) -> None:
    data, encoder = data_of(5), toy_clip(5)
    classifier = PromptedCLIP(encoder, None, data.class_names, data.templates)
    weaker = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    weaker.encoder.weight.data[0] *= 0.0
    result = evaluate(
        classifier, data, attacks="pgd-20", eps="10/255", batch_size=16, store=tmp_path, undefended=weaker
    )
    control = evaluate(weaker, data, attacks="pgd-20", eps="10/255", batch_size=16, control=False, checks=False)
    assert result.undefended is not None and result.undefended.clean == control.clean < result.clean
    assert result.undefended.worst == control.worst
    assert result.eps_text == "10/255" and result.image_size == SIDE and result.sound, result.checks
    same = evaluate(classifier, data, attacks="pgd-20", eps="10/255", batch_size=16, store=tmp_path, quiet=True)
    assert same.predictions == result.predictions
    assert same.undefended is not None and same.undefended.attacks == same.attacks
    alone = evaluate(classifier, data, attacks="pgd-5", eps="10/255", control=False, checks=False, limit=12)
    assert alone.undefended is None and alone.n == 12 and set(alone.ids) < set(result.ids)


@pytest.mark.parametrize("names", [slice(None, None, -1), slice(2)])
def test_a_control_for_other_classes_is_refused(names: slice) -> None:
    data = data_of(5)
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    with refused("undefended", "with_classes"):
        evaluate(classifier, data, attacks="pgd-1", undefended=classifier.with_classes(data.class_names[names]))


def test_images_are_corrupted_before_the_attack_and_kept_apart(tmp_path: Path) -> None:
    data, options = data_of(5), {"attacks": "pgd-5", "eps": "10/255", "checks": False, "store": tmp_path}
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    plain = evaluate(classifier, data, **options)
    noisy = evaluate(classifier, data, corruption="gaussian_noise:5", **options)
    assert (plain.corruption, noisy.corruption) == (None, "gaussian_noise:5")
    assert "40 images under gaussian_noise:5" in str(noisy) and "under" not in str(plain)
    images = data.test.decode(classifier.encoder.info.preprocessing)
    seeds = sample_seeds(images.ids, 0, "corruption")
    by_hand = replace(images, images=corrupt(images.images, "gaussian_noise", 5, seeds))
    same = evaluate_tensors(classifier, by_hand, data.class_names, settings(eps="10/255"))
    assert noisy.predictions == same.predictions != plain.predictions
    files = set(tmp_path.iterdir())
    again = evaluate(classifier, data, corruption="gaussian_noise:5", batch_size=7, **options)
    assert again.predictions == noisy.predictions and set(tmp_path.iterdir()) == files
    assert again.attacks["pgd-5"].seconds == noisy.attacks["pgd-5"].seconds, "nothing was computed again"
    milder = evaluate(classifier, data, corruption="gaussian_noise:1", **options)
    assert len(set(tmp_path.iterdir())) > len(files) and milder.predictions != noisy.predictions
    with refused("frog", meant("fog")):
        evaluate(classifier, data, corruption="frog:1", **options)


def test_json_has_the_agreed_keys_and_the_table_speaks() -> None:
    data = data_of(5)
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    result = evaluate(classifier, data, attacks=("clean", "pgd-5"), eps="10/255", seed=3)
    found = json.loads(result.to_json())
    assert set(found) >= {"clean", "attacks", "worst", "n", "eps", "norm", "seed", "undefended", "versions"}
    assert not {"ids", "labels", "predictions"} & set(found)
    assert set(found["attacks"]) == {"pgd-5"} and set(found["undefended"]) >= {"clean", "attacks", "worst"}
    low, high = found["attacks"]["pgd-5"]["interval"]
    assert 0 <= low <= found["attacks"]["pgd-5"]["accuracy"] <= high <= 100
    assert found["eps"] == 10 / 255 and found["norm"] == "linf" and found["seed"] == 3 and found["n"] == 40
    assert set(found["versions"]) >= {"apd", "torch", "transformers", "pyautoattack", "python"}
    assert found["precision"] == "float32" and {check["name"] for check in found["checks"]} >= {"eps 0", "undefended"}
    text = str(result)
    for part in ("pgd-5", f"{result.worst.accuracy:.2f}", "10/255", "40 images"):
        assert part in text


def test_table_fits_a_terminal_and_checks_take_a_line_unless_one_fails() -> None:
    images, names = decoded(30, 5), ("pgd-1", "apgd-ce+dlr")
    model = trained(5)
    good = evaluate_tensors(model, images, NAMES, settings(attacks=names, checks=True), undefended=trained(5, "linear"))
    judged = sum(check.passed is not None for check in good.checks)
    assert good.sound and f"all {judged} passed" in str(good) and "FAIL" not in str(good)
    assert "apgd-ce+dlr: pgd-10, apgd-ce, apgd-dlr" in str(good) and "worst of all" in str(good)
    weak = evaluate_tensors(model, images, NAMES, settings(attacks=("pgd-1",), eps=0.06, checks=True))
    failed = [check for check in weak.checks if check.passed is False]
    assert [f"FAIL {check.name}" in str(weak) for check in failed] == [True]
    assert "eps 0:" not in str(weak) and "worst of all" not in str(weak)
    for text in (str(good), str(weak)):
        assert max(map(len, text.splitlines())) <= 80


def test_a_table_with_long_names_still_fits() -> None:
    result = evaluate_tensors(trained(5), decoded(30, 5), NAMES, settings(attacks=("pgd-1",)))
    name = "a.package.of.somebody.else:Attack(steps=1000, step_size=[bold]0.25, restarts=10)"
    other = result.model_copy(update={"attacks": {name: result.attacks["pgd-1"]}, "data": "猫" * 60})
    lines = str(other).splitlines()
    assert max(map(cell_len, lines)) <= 80 and any("a.package.of" in line for line in lines)
    row = next(line for line in lines if "a.package.of" in line)
    assert f"{result.attacks['pgd-1'].accuracy:.2f}" in row, "the figures are not pushed out"


def test_base_and_new_classes() -> None:
    data = data_of(5)
    base = data.classes("base")
    classifier = PromptedCLIP(toy_clip(5), None, base.class_names, data.templates)
    assert evaluate(classifier, data, classes="base", attacks="clean").n == 24
    with refused("3", "5", "classifier.with_classes"):
        evaluate(classifier, data, attacks="clean")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"attacks": ("clean", "apgd-cc")}, ["apgd-cc", meant("apgd-ce")]),
        ({"attacks": "pgd-0"}, ["pgd-0", "pgd-1"]),
        ({"eps": 4}, ["eps", "4", meant("4/255")]),
        ({"norm": "l3"}, ["norm", "l3", "linf", "l2"]),
        ({"limit": 0}, ["limit", "0", "all", "auto"]),
        ({"epss": 1}, ["epss", meant("eps")]),
    ],
)
def test_wrong_settings_are_one_line(values: dict[str, Any], names: list[str]) -> None:
    with refused(*names):
        parse_settings(values)


def test_no_images_and_ids_that_stand_twice_are_refused() -> None:
    images = decoded(4, 2)
    with refused("tensors", "'a'"):
        evaluate_tensors(trained(2), Decoded(images.images, images.labels, ("a", "a", "b", "c")), NAMES[:2], settings())
    with refused("tensors", "no images"):
        evaluate_tensors(trained(2), first(images, 0), NAMES[:2], settings())
    data = data_of(5)
    with refused("val", "pictures"):
        evaluate(PromptedCLIP(toy_clip(5), None, data.class_names), data, split="val")


def test_the_column_of_zero_shot_clip_is_left_out_only_where_it_says_nothing() -> None:
    images, model, twin = decoded(12, 3), trained(3), trained(3)
    for parameter in list(twin.parameters())[-2:]:
        parameter.mul_(2)  # other weights, equal answers

    def shown(control: nn.Module | None) -> str:
        return str(evaluate_tensors(model, images, NAMES[:3], settings(attacks="clean"), undefended=control))

    assert "zero-shot %" in shown(twin)
    assert "zero-shot %" not in shown(model) + shown(None)


def test_logits_of_another_type_are_refused() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :5].double()

    with refused("float32", "float64"):
        Subject.of(Double()).check_outputs(decoded(4, 5).pixels(), 5)


def test_hooks_and_settings_that_torch_does_not_print_make_another_model() -> None:
    def heads(n: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, n, 8, batch_first=True))

    assert Subject.of(heads(2)).fingerprint == Subject.of(heads(2)).fingerprint != Subject.of(heads(4)).fingerprint
    named = heads(2)
    named[1].name_or_path = "/home/me/model"
    assert Subject.of(named).fingerprint == Subject.of(heads(2)).fingerprint, "the same model from another place"
    hooked = heads(2)
    hooked[1].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    assert Subject.of(hooked).fingerprint != Subject.of(heads(2)).fingerprint


def test_a_small_batch_is_no_smaller_a_sample_for_the_health_checks() -> None:
    by_size = {}
    for size in (1, 16):  # of one image nothing can jump
        found = evaluate_tensors(
            trained(5), decoded(16, 5), NAMES, settings(checks=True, attacks="pgd-2", batch_size=size)
        )
        by_size[size] = {check.name for check in found.checks}
    assert by_size[1] == by_size[16] >= {"jumps", "flat spots"}


def test_a_patch_is_not_too_weak_because_eps_allows_more() -> None:
    model, images = trained(5), decoded(40, 5)
    found = evaluate_tensors(model, images, NAMES, settings(checks=True, attacks="patch-2", eps=0.1))
    assert not [check for check in found.checks if "stronger" in check.name]
    both = evaluate_tensors(model, images, NAMES, settings(checks=True, attacks=("patch-2", "pgd-1"), eps=0.1))
    assert [check for check in both.checks if "stronger" in check.name]


def test_attacks_whose_names_look_alike_in_a_file_keep_their_results(tmp_path: Path) -> None:
    data = data_of(3, 6)
    clip = PromptedCLIP(toy_clip(3), None, data.class_names, data.templates)
    result = evaluate(clip, data, attacks="pgd-1", checks=False, quiet=True)
    for name in ("targeted:\N{CJK UNIFIED IDEOGRAPH-732B}", "targeted:\N{CJK UNIFIED IDEOGRAPH-72AC}"):
        renamed = {name: result.attacks["pgd-1"]}
        for _ in range(2):  # written again, it is replaced
            write_result(tmp_path, result.model_copy(update={"attacks": renamed, "undefended": None}))
    kept = [json.loads(file.read_text())["attacks"] for file in summary_files(tmp_path)]
    assert len(kept) == 2 and len({*map(str, kept)}) == 2
