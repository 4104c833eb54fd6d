"""What an evaluation keeps, and what it computes again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apd import attacks
from apd.attacks import autoattack
from apd.data.dataset import Decoded
from apd.errors import ApdError
from apd.evaluation import Result, evaluate, evaluate_tensors
from apd.evaluation.engine import Interrupted, Keeper

from .refusals import refused
from .test_evaluation import EPS, NAMES, data_of, first, settings
from .toys import SIDE, Counting, decoded, trained


def counting_run(folder: Path, n: int = 40, **values: Any) -> tuple[Result, int]:
    model = Counting(trained(5))
    result = evaluate_tensors(model, first(decoded(40, 5), n), NAMES, settings(**values), store=folder)
    return result, model.images


def without_time(result: Result) -> dict[str, Any]:
    found = result.to_dict() | {"predictions": result.predictions}
    for score in found["attacks"].values():
        del score["seconds"], score["seconds_earlier"]
    return found


def test_a_second_call_asks_the_model_nothing(tmp_path: Path) -> None:
    values: dict[str, Any] = {"attacks": ("pgd-5", "apgd-ce"), "checks": True}
    before, images = counting_run(tmp_path, **values)
    after, again = counting_run(tmp_path, **values)
    assert images > 1000 and again == 0
    assert without_time(before) == without_time(after)
    more, new = counting_run(tmp_path, attacks=("pgd-5", "apgd-ce", "pgd-1"))
    assert 0 < new <= 40 * 3 and set(more.attacks) == {"pgd-5", "apgd-ce", "pgd-1"}


@pytest.mark.parametrize("values", [{"eps": EPS / 2}, {"seed": 1}, {"norm": "l2"}, {"attacks": ("pgd-6",)}])
def test_other_circumstances_are_computed_anew(tmp_path: Path, values: dict[str, Any]) -> None:
    counting_run(tmp_path)
    known, images = counting_run(tmp_path, **values)
    assert images > 40
    assert without_time(known) == without_time(counting_run(tmp_path / "fresh", **values)[0])


def test_another_model_or_another_image_is_computed_anew(tmp_path: Path) -> None:
    counting_run(tmp_path)
    model = Counting(trained(5))
    model.model[3].bias.data[0] += 1e-3
    evaluate_tensors(model, decoded(40, 5), NAMES, settings(), store=tmp_path)
    assert model.images > 40
    model.images, images = 0, decoded(40, 5)
    images.images[30] = 255 - images.images[30]
    evaluate_tensors(model, images, NAMES, settings(), store=tmp_path)
    assert 1 <= model.images <= 1 + 7


class Root(nn.Module):
    """Has no gradient where a pixel is black."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sqrt() ** 2)


def test_whether_there_is_a_gradient_is_known_of_these_images_alone(tmp_path: Path) -> None:
    bright = decoded(40, 5)
    bright.images.clamp_(min=1)
    dark = decoded(40, 5)
    dark.images[:, :, 0] = 0
    for images, attack in ((dark, "square"), (bright, "pgd-5"), (dark, "square")):
        found = evaluate_tensors(Root(), images, NAMES, settings(attacks="pgd-5"), store=tmp_path)
        assert list(found.attacks) == [attack]


class Steps:
    """An attack of the usual form whose settings are no single number."""

    def __init__(self, sizes: list[float]) -> None:
        self.sizes = sizes

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), labels), leaf)
        return (x + sum(self.sizes) * eps * gradient.sign()).clamp(0, 1)


def test_an_attack_object_with_other_settings_is_another_attack(tmp_path: Path) -> None:
    idle, busy = (settings(attacks=Steps([size, 0.0])) for size in (0.0, 1.0))
    before, after = (evaluate_tensors(trained(5), decoded(40, 5), NAMES, s, store=tmp_path) for s in (idle, busy))
    assert before.worst.accuracy == before.clean > after.worst.accuracy
    assert attacks.name_of(Steps([1.0])) == attacks.name_of(Steps([1.0])) != attacks.name_of(Steps([2.0]))
    drawing = [Steps([1.0]), Steps([1.0])]
    for each in drawing:
        each.generator = np.random.default_rng(0)
    assert attacks.name_of(drawing[0]) == attacks.name_of(drawing[1]), "its address is no setting"


def test_a_target_is_a_class_and_not_a_name(tmp_path: Path) -> None:
    data, how = data_of(5), {"attacks": "targeted:cat", "eps": "10/255", "checks": False, "quiet": True, "limit": 16}
    for place in (0, 1):
        names = [f"class {label}" for label in range(5)]
        names[place] = "cat"
        named = replace(data, class_names=tuple(names))
        kept, fresh = (evaluate(trained(5), named, store=folder, image_size=SIDE, **how) for folder in (tmp_path, None))
        assert kept.predictions == fresh.predictions


def test_a_larger_limit_computes_only_the_new_samples(tmp_path: Path) -> None:
    _, small = counting_run(tmp_path, n=16)
    grown, more = counting_run(tmp_path, n=40)
    fresh, whole = counting_run(tmp_path / "fresh", n=40)
    assert small + more == whole and without_time(grown) == without_time(fresh)
    shrunk, none = counting_run(tmp_path, n=16)
    assert none == 0 and shrunk.n == 16


class Undefined(nn.Module):
    """Gives no numbers where two classes are nearly as likely, which attacks come to and no clean image here does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        gap = z.detach().topk(2, dim=1).values.diff(dim=1).abs()
        return z + torch.where(gap < 0.5, torch.nan, 0.0)


@pytest.mark.parametrize("attack", ["apgd-ce+dlr", "autoattack", "strong"])
def test_logits_that_are_not_finite_are_an_error_each_time(tmp_path: Path, attack: str) -> None:
    """They were kept as the outcome of the attack's first part, which a second call took for fooled images."""
    model, images = Undefined(trained(5)), decoded(40, 5)
    sure = model(images.pixels()).isfinite().all(dim=1).nonzero().flatten()[:10]
    images = Decoded(images.images[sure], images.labels[sure], tuple(images.ids[i] for i in sure))
    for _ in range(2):
        with pytest.raises(ApdError, match="not finite"):
            evaluate_tensors(model, images, NAMES, settings(attacks=(attack,)), store=tmp_path)


@pytest.mark.parametrize("after", [30, 2000])
def test_a_killed_evaluation_resumes_to_the_same_result(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Counting.forward

    def killed(self: Counting, x: Tensor) -> Tensor:
        if self.images > after:
            raise KeyboardInterrupt
        return forward(self, x)

    values: dict[str, Any] = {"attacks": ("pgd-5", "apgd-ce"), "batch_size": 8}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Counting, "forward", killed)
        evaluate_tensors(Counting(trained(5)), decoded(40, 5), NAMES, settings(**values), store=tmp_path)
    resumed, rest = counting_run(tmp_path, **values)
    fresh, whole = counting_run(tmp_path / "fresh", **values)
    assert without_time(resumed) == without_time(fresh)
    assert rest < whole


def test_the_store_can_be_read_by_a_person_and_is_never_half_written(tmp_path: Path) -> None:
    counting_run(tmp_path)
    assert sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()) == ["clean", "gradient", "pgd-5"]
    (record,) = tmp_path.glob("pgd-5-*.jsonl")
    head, *rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert head["circumstances"]["eps"] == repr(EPS) and head["circumstances"]["precision"] == "float32"
    outcomes = [row for row in rows if "id" in row]
    assert {row["id"] for row in outcomes} <= set(decoded(40, 5).ids)
    fooled = [row for row in outcomes if row["predicted"] != row["label"]]
    assert fooled and {row["by"] for row in fooled} == {"pgd-5"}
    assert sum(row["seconds"] for row in rows if "seconds" in row) > 0


def test_store_appends(tmp_path: Path) -> None:
    counting_run(tmp_path, n=16)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.jsonl")}
    counting_run(tmp_path, n=40)
    for file, content in before.items():
        assert file.read_bytes().startswith(content) and file.stat().st_size > len(content)


def test_store_drops_an_unfinished_last_line_only(tmp_path: Path) -> None:
    whole, _ = counting_run(tmp_path)
    (record,) = tmp_path.glob("pgd-5-*.jsonl")
    lines = record.read_text().splitlines(keepends=True)
    for torn in ("".join(lines)[:-20], lines[0][:-5], ""):
        record.write_text(torn)
        again, images = counting_run(tmp_path)
        assert images > 0 and again.predictions == whole.predictions
        assert all(json.loads(line) for line in record.read_text().splitlines())
        assert counting_run(tmp_path)[1] == 0
    record.write_text("".join([*lines[:3], lines[3][:-20] + "\n", *lines[4:]]))
    with refused(str(record), "remove"):
        counting_run(tmp_path)


def test_store_continues_a_file_of_an_older_version(tmp_path: Path) -> None:
    """It was one line of totals, then one line per sample."""
    fresh, whole = counting_run(tmp_path / "fresh")
    counting_run(tmp_path, n=16)
    (record,) = tmp_path.glob("pgd-5-*.jsonl")
    head, *rows = [json.loads(line) for line in record.read_text().splitlines()]
    head |= {"seconds": 7.5, "flags": {"dynamic": 2}, "batch_sizes": [16]}
    rows = [row for row in rows if "id" in row]
    record.write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))
    continued, images = counting_run(tmp_path)
    assert 0 < images < whole and continued.predictions == fresh.predictions
    score = continued.attacks["pgd-5"]
    assert (score.seconds_earlier, score.flags, score.batch_sizes) == (7.5, {"dynamic": 2}, (16,))


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with a tenth of its iterations and queries; what is kept of its parts does not depend on them."""
    standard = autoattack._standard

    def short(*arguments: Any) -> Any:
        library = standard(*arguments)
        for part in (library.apgd, library.apgd_targeted):
            part.n_iter = part.n_iter_orig = 10
        library.fab.n_iter, library.square.n_queries = 10, 500
        return library

    monkeypatch.setattr(autoattack, "_standard", short)


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize("attack", ["autoattack", "apgd-ce+dlr"])
@pytest.mark.parametrize("part", [1, 2])
def test_an_attack_is_resumed_after_its_last_finished_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, part: int
) -> None:
    """With the same outcomes as in one go, although the library draws for a whole batch."""
    values: dict[str, Any] = {"attacks": (attack,), "batch_size": 30, "eps": 0.03}
    fresh, whole = counting_run(tmp_path / "fresh", **values)
    stop_at = attacks.find(attack).runs(5)[part]
    begin = Keeper.begin

    def stopping(self: Keeper, name: str) -> None:
        begin(self, name)
        if name == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "begin", stopping)
        with pytest.raises(Interrupted) as stop:
            counting_run(tmp_path, **values)
    assert 0 < stop.value.finished < stop.value.total <= 40 and stop.value.attack == attack
    assert 0 < stop.value.begun <= stop.value.total - stop.value.finished
    resumed, rest = counting_run(tmp_path, **values)
    assert without_time(resumed) == without_time(fresh)
    assert rest < whole
    assert counting_run(tmp_path, **values)[1] == 0


def test_the_table_tells_time_of_an_earlier_start_from_this_one(tmp_path: Path) -> None:
    values: dict[str, Any] = {"attacks": ("pgd-5", "pgd-3")}
    fresh, _ = counting_run(tmp_path, n=16, **values)
    assert "earlier" not in str(fresh)
    for file in tmp_path.glob("pgd-5-*.jsonl"):
        head, *rows = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps({**json.loads(head), "seconds": 206.0}), *rows]) + "\n")
    reused, _ = counting_run(tmp_path, n=4, **values)
    assert "pgd-5: 206 s in earlier calls" in str(reused) and str(reused).count("206") == 1
    grown, _ = counting_run(tmp_path, n=40, **values)
    score = grown.attacks["pgd-5"]
    assert score.seconds >= score.seconds_earlier == 206 and "206 s in earlier calls" in str(grown)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(str(tmp_path / "file")):
        counting_run(tmp_path / "file")


def test_kept_health_checks_of_an_earlier_revision_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for revision in ("1", "1", "2"):
        monkeypatch.setattr("apd.evaluation.summary.REVISION", revision)
        counting_run(tmp_path, n=8, checks=True)
    assert len(list(tmp_path.glob("checks-*"))) == 2


def test_a_folder_may_be_given_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluate_tensors(trained(5), decoded(4, 5), NAMES, settings(), store="~/kept")
    assert list((tmp_path / "kept").iterdir())
