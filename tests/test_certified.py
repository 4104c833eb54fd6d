"""Certified accuracy: against linear classifiers, whose radius is known exactly, and by counting what is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import apd
from apd.attacks import Noise, Objective, ThreatModel, cross_entropy
from apd.attacks.settings import AttackSettings
from apd.data.batch import Batch
from apd.errors import InputError
from apd.evaluation.certified.certify import certify
from apd.evaluation.certified.features import NoisyFeatures
from apd.evaluation.certified.result import CertifiedImage, scores
from apd.evaluation.certified.smoothing import BLOCK, Smoothing, Votes, lower_bound, noisy, votes
from apd.evaluation.certified.stored import load_certified, save_certified
from apd.methods import find_method
from apd.runs.config import load_config
from apd.settings.train import TrainSettings
from apd.training.step import TrainStep
from tests.command_line import Cli
from tests.toys import ToyCLIP, pictures, toy_clip

NAMES = ["a", "b"]
QUICK: dict[str, Any] = {"sigma": 0.3, "n0": 16, "n": 240, "limit": 12, "quiet": True}


class Counted(ToyCLIP):
    """A toy CLIP that counts the images it embeds."""

    _seen = 0

    @property
    def seen(self) -> int:
        return self._seen

    def encode_image(self, x: Tensor, tokens: Any = ()) -> Tensor:
        self._seen += len(x)  # not a setting, which tells models apart
        return super().encode_image(x, tokens)


@pytest.fixture
def toy() -> Counted:
    return Counted(toy_clip(2).weight.detach())


@pytest.fixture
def data() -> apd.Dataset:
    x, labels = pictures(24, 2, seed=3)
    return apd.Dataset.from_tensors("pictures", NAMES, (x, labels), (x, labels))


def true_radii(toy: ToyCLIP, classifier: apd.PromptedCLIP, data: apd.Dataset, ids: list[str]) -> dict[str, float]:
    """Distance of each image to the border of a linear classifier of two classes, negative where it is wrong."""
    normal = toy.weight[0] - toy.weight[1]
    found = {}
    decoded = data.test.decode(classifier.encoder.info.preprocessing)
    for id_, x, label in zip(decoded.ids, decoded.pixels(), decoded.labels.tolist(), strict=True):
        signed = float((x - 0.5).flatten() @ normal / normal.norm())
        found[id_] = signed if label == 0 else -signed
    return {id_: found[id_] for id_ in ids}


@pytest.mark.parametrize("distance", [0.02, 0.1, 0.25])
def test_radius_of_a_linear_classifier_is_below_the_true_one_and_near_it(distance: float) -> None:
    torch.manual_seed(0)
    normal = torch.randn(12)
    border = nn.Linear(12, 2, bias=True)
    with torch.no_grad():
        border.weight.copy_(torch.stack([normal, -normal]))
        x = 0.5 + distance * normal / normal.norm()
        border.bias.copy_(torch.stack([-(normal @ torch.full((12,), 0.5)), normal @ torch.full((12,), 0.5)]))
    how = Smoothing(sigma=0.2, n0=50, n=4000)
    (found,) = votes(lambda images: images.flatten(1), [border], x.reshape(3, 2, 2), 7, how)
    certificate = how.certify(found)
    assert certificate.predicted == (0 if certificate.radius else None)
    assert distance - 0.03 < certificate.radius <= distance or (certificate.predicted is None and distance < 0.03)


@pytest.mark.parametrize(("k", "n"), [(1, 10), (51, 100), (99, 100), (100, 100), (940, 1000)])
def test_bound_leaves_alpha_above_it(k: int, n: int) -> None:
    bound = lower_bound(k, n, 0.01)
    assert binom.sf(k - 1, n, bound) == pytest.approx(0.01)
    assert lower_bound(0, n, 0.01) == 0
    assert lower_bound(n, n, 1e-17) == pytest.approx(1e-17 ** (1 / n))


@pytest.mark.parametrize("p", [0.5, 0.51, 0.7, 0.95, 0.999])
def test_bound_is_wrong_with_probability_alpha_at_most(p: float) -> None:
    n, alpha = 60, 0.05
    wrong = sum(float(binom.pmf(k, n, p)) for k in range(n + 1) if lower_bound(k, n, alpha) > p)
    assert wrong <= alpha


def test_abstains_unless_one_class_has_the_majority() -> None:
    how = Smoothing(sigma=0.5, n0=10, n=100)
    assert how.certify(Votes((6, 4), (55, 45))).predicted is None
    assert how.certify(Votes((4, 6), (100, 0))).predicted is None  # the class is chosen by the first draws alone
    sure = how.certify(Votes((10, 0), (100, 0)))
    assert (sure.predicted, sure.radius) == (0, pytest.approx(how.largest_radius))
    assert Smoothing(sigma=1.0, n=9).largest_radius == 0  # nine draws prove nothing at alpha 0.001


def test_fewer_draws_are_the_first_of_more_and_each_block_has_its_own() -> None:
    x = torch.rand(3, 3, 3)
    many = torch.cat(list(noisy(x, 5, 0.1, 2 * BLOCK + 7)))
    assert len(many) == 2 * BLOCK + 7
    assert torch.equal(torch.cat(list(noisy(x, 5, 0.1, BLOCK + 3))), many[: BLOCK + 3])
    assert not torch.equal(many[:7], many[2 * BLOCK :])
    assert float((many - x).std()) == pytest.approx(0.1, rel=0.05)


def test_no_certificate_exceeds_the_distance_to_the_border_and_no_attack_contradicts_one(
    toy: Counted, data: apd.Dataset
) -> None:
    classifier = apd.PromptedCLIP(toy, None, NAMES)
    radii = (0.2, 0.4, 0.6, 0.8)
    found = certify(classifier, data, attack=True, radii=radii, **QUICK)
    true = true_radii(toy, classifier, data, [image.id for image in found.images])
    certified = [image for image in found.images if image.predicted == image.label]
    assert len(certified) > 3
    assert all(image.radius <= true[image.id] for image in certified)
    assert found.contradictions == 0 and found.sound
    for point in found.curve:
        assert point.attacked is not None and point.attacked.accuracy >= point.accuracy
        # The attack reaches the border of a linear classifier, so it leaves what is farther away, give or take near ties.
        farther = 100 * sum(one > point.radius for one in true.values()) / len(true)
        assert point.attacked.accuracy == pytest.approx(farther, abs=17)
    assert found.curve[-1].attacked is not None and found.curve[0].attacked is not None
    assert found.curve[-1].attacked.accuracy < found.curve[0].attacked.accuracy


def test_broken_certificate_is_counted() -> None:
    images = [
        CertifiedImage(id="x", label=0, predicted=0, radius=0.5),
        CertifiedImage(id="y", label=1, predicted=1, radius=0.1),
    ]
    fooled, standing = Votes((1, 0), (100, 900)), Votes((1, 0), (480, 520))
    honest = scores(images, (0.25,), {0.25: {"x": standing, "y": fooled}})
    broken = scores(images, (0.25,), {0.25: {"x": fooled, "y": fooled}})
    assert (honest.contradictions, broken.contradictions) == (0, 1)
    assert honest.curve[0].accuracy == 50


def test_votes_are_kept_image_by_image_and_shared_with_zero_shot(
    toy: Counted, data: apd.Dataset, tmp_path: Path
) -> None:
    classifier = apd.PromptedCLIP(toy, None, NAMES)
    first = certify(classifier, data, store=tmp_path, **QUICK)
    draws = 12 * (16 + 240)
    assert toy.seen == draws  # the control is the same classifier
    assert first.undefended is not None and first.undefended.curve == first.curve
    (file,) = tmp_path.glob("votes-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-2]) + lines[-2][:20])  # as a kill leaves it
    again = certify(classifier, data, store=tmp_path, **QUICK)
    assert toy.seen == draws + 2 * (16 + 240)
    assert again.images == first.images
    file.write_text(lines[0][:20])  # killed in its first line
    for _ in range(2):
        certify(classifier, data, store=tmp_path, **QUICK)
    assert toy.seen == 2 * draws + 2 * (16 + 240), "the second call finds all votes of the first"
    reworded = classifier.with_classes(["x b", "y a"])  # other texts, the same noise
    swapped = certify(
        reworded, apd.Dataset.from_tensors("p", ["x b", "y a"], *([pictures(24, 2, seed=3)] * 2)), **QUICK
    )
    assert swapped.curve[0].accuracy < first.curve[0].accuracy
    whole = file.read_text().splitlines(keepends=True)
    edits = {"first": ([], [1, 1], [17, -1]), "counts": ([], [10**6, 0], [240], [241, -1], [0, 0])}
    damaged = [[whole[0], json.dumps({**json.loads(whole[1]), k: v}) + "\n"] for k, each in edits.items() for v in each]
    for lines in (["{}\n", "[]\n"], ["garbage\n", *whole[1:]], ['{"about": {}}\n', *whole[1:]], *damaged):
        file.write_text("".join(lines))
        with pytest.raises(InputError, match=str(file.name)):
            certify(classifier, data, store=tmp_path, **QUICK)


def test_features_under_noise_serve_every_set_of_classes(toy: Counted, data: apd.Dataset, tmp_path: Path) -> None:
    three = ToyCLIP(toy_clip(3).weight.detach())
    classifier = apd.PromptedCLIP(three, None, ["a", "b", "c"])
    x, _ = pictures(4, 3, seed=1)
    ids, how = ["p", "q", "r", "s"], Smoothing(0.2, 8, 90)
    kept = NoisyFeatures.compute(classifier, x, ids, how)
    kept.save(tmp_path / "kept.safetensors")
    kept = NoisyFeatures.load(tmp_path / "kept.safetensors")
    assert kept.how == how
    for names in (["a", "b", "c"], ["c", "a"]):
        head = classifier.with_classes(names).bind_detached()
        seeds = apd.evaluation.certified.features.sample_seeds(ids, 0, "noise").tolist()
        direct = [
            votes(head.features, [head.logits_from_features], one, seed, how)[0]
            for one, seed in zip(x, seeds, strict=True)
        ]
        assert kept.votes(classifier.with_classes(names)) == direct
    with pytest.raises(InputError, match="image tower"):
        kept.votes(apd.PromptedCLIP(toy, None, NAMES))
    with pytest.raises(InputError, match="missing"):
        NoisyFeatures.load(tmp_path / "none.safetensors")


def test_noise_trains_on_unclipped_gaussian_images_per_sample() -> None:
    x, labels = pictures(6, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
    objective, threat = Objective(model, cross_entropy, labels), ThreatModel(0.5, "l2")
    seeds = torch.arange(6)
    plain = Noise(sigma=0.4)(objective, x, threat, seeds)
    assert float((plain - x).std()) == pytest.approx(0.4, rel=0.1)
    assert float(plain.min()) < 0 and float(plain.max()) > 1
    alone = Noise(sigma=0.4)(objective.select(torch.tensor([4])), x[4:5], threat, seeds[4:5])
    assert torch.equal(alone, plain[4:5])
    climbed = Noise(sigma=0.4, steps=3)(objective, x, threat, seeds)
    moved = (climbed - plain).flatten(1).norm(dim=1)
    assert bool((objective(climbed) > objective(plain)).all())
    assert float(moved.max()) <= 0.5 + 1e-5


def test_noise_is_a_kind_of_training_attack_with_options() -> None:
    settings = AttackSettings(kind="noise", options={"sigma": 0.12})
    assert settings.attack_class.from_settings(settings) == Noise(sigma=0.12)
    with pytest.raises(ValueError, match="sigma"):
        AttackSettings(kind="noise", options={"sigma": -1})
    sets = ["train.attack.kind=noise", "train.attack.options.sigma=0.3"]
    assert load_config(flags={"data.source": "digits"}, sets=sets).train.attack.options == {"sigma": 0.3}


@pytest.mark.parametrize("options", [{"sigma": 0.2}, {"sigma": 0.2, "steps": 1}])
def test_noise_is_there_without_eps(options: dict[str, Any]) -> None:
    """Before an ascent begins, too; and eps cannot be shared out where nothing takes it."""
    settings = TrainSettings(attack={"kind": "noise", "options": options})
    method = find_method("advvlp")
    zero_shot = apd.PromptedCLIP(apd.load_clip("glyphs"), None, NAMES)
    x = torch.rand(2, 3, 32, 32)
    step = TrainStep(method(method.Settings(), zero_shot), settings)
    images = step(Batch.of(x, torch.tensor([0, 1])), ThreatModel(0.0, "l2"))[1]
    assert float((images - x).std()) == pytest.approx(0.2, rel=0.1)
    sets = ["train.attack.kind=noise", f"train.attack.options={options}", "train.eps_per_image=true"]
    if "steps" not in options:
        with pytest.raises(InputError, match=r"train\.eps_per_image.*noise.*false"):
            load_config(flags={"data.source": "digits"}, sets=[*sets, "method.name=advvlp"])
    else:
        assert load_config(flags={"data.source": "digits"}, sets=[*sets, "method.name=advvlp"]).train.eps_per_image


def test_a_run_trained_under_noise_says_so_and_is_certified_from_its_folder(tmp_path: Path) -> None:
    data = apd.load_data("digits", shots=1)
    run = apd.train(
        "glyphs", data, method="advvlp", attack=Noise(sigma=0.2), epochs=1, output=tmp_path / "run", quiet=True
    )
    attack = run.config.train.attack
    assert (attack.kind, attack.options["sigma"]) == ("noise", 0.2)
    found = apd.certify_run(run.path, sigma=0.2, n0=4, n=28, limit=2, quiet=True)
    (file,) = run.results.glob("certified-*.json")
    assert json.loads(file.read_text()) == found.to_dict()
    assert len(list(run.results.glob("votes-*.jsonl"))) == 2  # the run's and those of zero-shot CLIP
    for n in (1000, 28, 56):
        save_certified(run, found.model_copy(update={"n": n}))
    save_certified(run, found.model_copy(update={"n": 99, "curve": []}))
    (empty,) = (file for file in run.results.glob("certified-*.json") if '"curve": []' in file.read_text())
    with pytest.raises(InputError, match=empty.name):
        load_certified(run)
    empty.unlink()
    assert sorted(one.n for one in load_certified(run)) == [28, 56, 1000], "a quick one does not replace another"
    save_certified(run, found.model_copy(update={"undefended": None}))
    others = [image.model_copy(update={"id": f"other/{image.id}"}) for image in found.images]
    for _ in range(2):
        save_certified(run, found.model_copy(update={"images": others}))
    save_certified(run, found.model_copy(update={"images": others, "undefended": None}))
    save_certified(run, found.model_copy(update={"seconds": 0.0}))
    kept = [one for one in load_certified(run) if one.n == 28]
    assert len(kept) == 4, "nor one without the control, nor one of other images; the same again replaces the first"
    assert sum(one.undefended is None for one in kept) == 2 and sum(one.seconds == 0 for one in kept) == 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"sigma": 0}, "sigma"), ({"sigma": 1e-7}, "sigma"), ({"sigma": 25}, "sigma"), ({"alpha": 0.7}, "alpha"),
     ({"n": 0}, "n"), ({"n": 9}, "n=10"), ({"alpha": 1e-17, "n": 56}, "n=57"), ({"limit": 0}, "limit"),
     ({"radii": (-1.0,)}, "radii"),
     ({"sigmaa": 1}, "sigmaa")],
)  # fmt: skip
def test_wrong_settings_are_refused(toy: Counted, data: apd.Dataset, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        certify(apd.PromptedCLIP(toy, None, NAMES), data, **wrong)


def test_command_prints_a_table_and_json(cli: Cli, tmp_path: Path) -> None:
    common = ["certify", "--model", "glyphs", "--data", "digits", "--sigma", 0.1, "--n0", 8, "--n", 56, "--limit", 2]
    answer = cli(*common, "--json", "--output", tmp_path / "found.json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found == json.loads((tmp_path / "found.json").read_text())
    assert (found["n_images"], found["sigma"], len(found["images"])) == (2, 0.1, 2)
    assert found["undefended"]["curve"] == found["curve"]
    assert cli("certify", "--model", "glyphs").code == 2
    assert cli(*common, "--template", "a bad sentence").code == 2, "without {}"
    assert json.loads(cli(*common, "--template", "a drawing of {}.", "--json").out)["n_images"] == 2
    assert cli(*common, "--radii", "x").code == 2
    assert cli("certify", tmp_path).code == 2
