"""Unlabelled images: which they are, that no label of theirs is looked at, and what methods learn from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import apd
from apd.attacks import PGD, ThreatModel
from apd.data import Dataset, load_data
from apd.data.batch import Batch
from apd.data.dataset import UNKNOWN
from apd.methods import Method, Step
from apd.methods.apd import APD
from apd.methods.apd_settings import APDSettings
from apd.methods.base import Preparation
from apd.methods.teachers import choose, mean_logits
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import PromptSpec
from tests.refusals import refused
from tests.toys import decoded

pytestmark = pytest.mark.usefixtures("brief_teachers")

QUICK = {"epochs": 2, "batch_size": 8, "eps": "4/255", "validate_every": 2, "checkpoint_every": 1, "device": "cpu"}
SMALL = {"text_tokens": 2, "visual_tokens": 2}


def prompts_of(run: apd.Run) -> dict[str, Tensor]:
    return run.load_prompts()


def some(colours: Path, **settings: object) -> Dataset:
    return load_data(colours, shots=2, validation=1, unlabelled="rest", **settings)


def train(path: Path, clip: DualEncoder, data: Dataset, method: str = "apd", **settings: object) -> dict[str, Tensor]:
    section = {"name": method, "prompts": SMALL}
    return prompts_of(apd.train(clip, data, method=section, output=path, **{**QUICK, **settings}))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_rest_is_neither_shots_nor_validation_nor_test(colours: Path) -> None:
    data, everything = some(colours), load_data(colours, shots="all")
    splits = [set(split.ids) for split in (data.train, data.val, data.test, data.unlabelled)]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert splits[3] <= set(everything.train.ids) | set(everything.val.ids)
    assert f"{len(splits[3])} unlabelled" in data.summary()


def test_a_limit_draws_by_the_seed_and_smaller_limits_are_subsets(colours: Path) -> None:
    few, more = some(colours, unlabelled_limit=2), some(colours, unlabelled_limit=3)
    assert len(few.unlabelled) == 2 and set(few.unlabelled.ids) < set(more.unlabelled.ids)


def test_base_classes_have_the_unlabelled_images_of_base_classes(colours: Path) -> None:
    data = some(colours)
    base = data.classes("base")
    known = dict(zip(data.unlabelled.ids, data.unlabelled.labels.tolist(), strict=True))
    assert base.unlabelled.ids and all(known[id_] < len(base.class_names) for id_ in base.unlabelled.ids)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"shots": 0}, ["shots"]),
        ({"shots": "all", "unlabelled": "rest"}, ["unlabelled", "shots"]),
        ({"unlabelled": ""}, ["data.unlabelled", "rest"]),
        ({"unlabelled_limit": 5}, ["data.unlabelled_limit", "5", "data.unlabelled"]),
    ],
)
def test_impossible_choices_are_refused(colours: Path, settings: dict[str, object], names: list[str]) -> None:
    with refused(*names):
        load_data(colours, **settings)


@pytest.mark.parametrize("method", ["apd", "advvlp", "trades", "agft", "coapt", "promptkd"])
def test_no_label_of_an_unlabelled_image_is_used(
    tmp_path: Path, shallow: DualEncoder, colours: Path, method: str
) -> None:
    data = some(colours, unlabelled_limit=8)
    other = replace(data, unlabelled=replace(data.unlabelled, labels=(data.unlabelled.labels + 1) % 3))
    assert not torch.equal(data.unlabelled.labels, other.unlabelled.labels)
    one, two = (train(tmp_path / str(i), shallow, each, method) for i, each in enumerate((data, other)))
    assert same(one, two)
    assert not same(
        one, train(tmp_path / "without", shallow, replace(data, unlabelled=data.unlabelled.select([])), method)
    )


@pytest.mark.parametrize("method", ["apd", "agft", "fare", "promptkd"])
def test_methods_that_need_no_label_spend_nothing_on_pseudo_labels(
    tmp_path: Path, shallow: DualEncoder, colours: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> Tensor:
        raise AssertionError("a teacher was tuned for labels that nobody reads")

    monkeypatch.setattr("apd.training.loop.pseudo_labels", never)
    prompts = {"visual_tokens": 2} if method == "fare" else SMALL
    section, quick = {"name": method, "prompts": prompts}, {**QUICK, "epochs": 1}
    run = apd.train(shallow, some(colours, unlabelled_limit=4), method=section, output=tmp_path / "run", **quick)
    assert run.finished


class Careless(Method):
    """Leaves images without labels, and says nothing of what its attack climbs."""

    pseudo_labels = False

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        return {"clean_ce": step.cross_entropy(step.clean_logits())}


def test_a_method_that_leaves_images_without_labels_must_say_what_its_attack_climbs(
    tmp_path: Path, shallow: DualEncoder, colours: Path
) -> None:
    with refused("Careless", "pseudo_labels = False", "inner()"):
        apd.train(shallow, some(colours, unlabelled_limit=4), method=Careless, output=tmp_path / "run", **QUICK)
    data = load_data(colours, shots=2)
    prompts = {"name": Careless, "prompts": SMALL}
    assert apd.train(shallow, data, method=prompts, output=tmp_path / "labelled", **QUICK).finished


@pytest.mark.parametrize("method", ["apd", "advvlp"])
def test_a_training_stopped_in_between_ends_with_the_same_prompts(
    tmp_path: Path, shallow: DualEncoder, colours: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apd.training.loop import Loop

    data = some(colours, unlabelled_limit=8)
    whole = train(tmp_path / "whole", shallow, data, method)
    own, count = Loop.train_batch, 0

    def stopping(self: Loop, *arguments: object) -> object:
        nonlocal count
        count += self.run is not None
        self.stop |= count == 2
        return own(self, *arguments)

    monkeypatch.setattr(Loop, "train_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", shallow, data, method)
    monkeypatch.undo()
    assert same(whole, train(tmp_path / "stopped", shallow, data, method, resume=True))


@pytest.mark.parametrize("inner", ["ce", "mixed"])
def test_an_attack_loss_on_labels_takes_the_teacher_s_class_of_unlabelled_images(
    tmp_path: Path, shallow: DualEncoder, colours: Path, inner: str
) -> None:
    section = {"name": "apd", "prompts": SMALL, "inner": inner}
    quick = {**QUICK, "epochs": 1, "attack": {"loss": "margin"}}
    assert apd.train(
        shallow, some(colours, unlabelled_limit=8), method=section, output=tmp_path / "run", **quick
    ).finished


def mixed_batch() -> Batch:
    images = decoded(4, 3)
    labels = torch.tensor([0, 1, UNKNOWN, UNKNOWN])
    return replace(Batch.of(images.pixels(), labels), labelled=labels != UNKNOWN)


def test_apd_s_loss_on_a_mixed_batch_is_the_mean_of_each_image_s_own(shallow: DualEncoder) -> None:
    """(1 - w) CE + w KL, written out image by image in plain torch; y of an unlabelled image is the teacher's own."""
    bare = PromptedCLIP(shallow, None, ("red", "green", "blue"))
    method = APD(
        APDSettings(teacher="frozen", balance=0.3, adv_ce=1.0, inner="mixed", prompts=PromptSpec(**SMALL)), bare
    )
    size = shallow.info.image_size
    batch = mixed_batch()
    batch = replace(batch, x=F.interpolate(batch.x, size=size))
    step = Step(batch, method.student.bind())
    with torch.no_grad():
        found = method.loss(step, batch.x)
        known = bare.bind().logits(batch.x).softmax(-1)
        guess = method.student.bind().logits(batch.x).log_softmax(-1)
    kl = (known * (known.log() - guess)).sum(-1)
    expected = sum(
        -0.7 * float(guess[i, label if label != UNKNOWN else int(known[i].argmax())]) + 0.3 * float(kl[i])
        for i, label in enumerate(batch.labels.tolist())
    )
    assert sum(map(float, found.values())) == pytest.approx(expected / 4, rel=1e-4)


def test_apd_s_attack_on_an_unlabelled_image_climbs_the_teacher_s_answer(shallow: DualEncoder) -> None:
    bare = PromptedCLIP(shallow, None, ("red", "green", "blue"))
    method = APD(
        APDSettings(teacher="frozen", balance=0.3, adv_ce=1.0, inner="mixed", prompts=PromptSpec(**SMALL)), bare
    )
    batch = mixed_batch()
    batch = replace(batch, x=F.interpolate(batch.x, size=shallow.info.image_size))
    step = Step(batch, method.student.bind())
    target = method.inner(step, step.student.detach()).target
    known = bare.bind_detached().logits(batch.x).softmax(-1)
    labels = torch.tensor([0, 1, *known[2:].argmax(-1).tolist()])
    torch.testing.assert_close(target, 0.7 * F.one_hot(labels, 3) + 0.3 * known)


def test_the_mean_of_teachers_is_that_of_their_probabilities() -> None:
    one, two, three = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)
    both = mean_logits([one, two], torch.tensor([0.25, 0.75])).softmax(-1)
    torch.testing.assert_close(both, 0.25 * one.softmax(-1) + 0.75 * two.softmax(-1))
    torch.testing.assert_close(mean_logits([one, two], torch.tensor([1.0, 0.0])).softmax(-1), one.softmax(-1))
    two_of_three = mean_logits([one, two, three], torch.tensor([0.5, 0.0, 0.5])).softmax(-1)
    torch.testing.assert_close(two_of_three, (one.softmax(-1) + three.softmax(-1)) / 2)


def test_the_teacher_whose_soft_labels_fit_best_is_chosen() -> None:
    labels = torch.arange(60) % 3
    right, chance = 3.0 * F.one_hot(labels, 3), torch.zeros(60, 3)
    assert choose([right, chance], labels) == ((1.0, 0.0), 1.0)
    assert choose([chance, right], labels)[0] == (0.0, 1.0)
    assert choose([chance, right, chance], labels)[0] == (0.0, 1.0, 0.0)
    # Each is sure and right on its own half, unsure on the other: both together know more.
    half = (torch.arange(60) < 30)[:, None]
    first, second = (torch.where(half == which, 6.0 * F.one_hot(labels, 3), chance) for which in (True, False))
    assert choose([first, second], labels)[0] == (0.5, 0.5)
    assert choose([first, chance, second], labels)[0] == (0.5, 0.0, 0.5)


@pytest.mark.parametrize("knows", ["frozen", "tuned"])
def test_apd_takes_the_teacher_that_validation_images_speak_for(shallow: DualEncoder, knows: str) -> None:
    bare = PromptedCLIP(shallow, None, ("red", "green", "blue"))
    method = APD(APDSettings(teacher="auto", balance="auto", prompts=PromptSpec(**SMALL)), bare)
    images = decoded(30, 3)
    images = replace(images, images=F.interpolate(images.images, size=shallow.info.image_size))

    def tune(clean: Method) -> None:
        with torch.no_grad():
            for parameter in clean.student.prompts.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 2)

    other = APD(APDSettings(teacher="tuned", adv_kl=1.0, prompts=PromptSpec(**SMALL)), bare)
    other.prepare(Preparation(images, PGD(1), ThreatModel(0.01), 0, tune, images))
    with torch.no_grad():
        answers = {
            name: one.bind().logits(images.pixels()) for name, one in (("frozen", bare), ("tuned", other.teacher))
        }
    labels = answers[knows].argmax(-1)
    soft = {name: z.softmax(-1) for name, z in answers.items()}
    soft["frozen+tuned"] = (soft["frozen"] + soft["tuned"]) / 2
    best = min(soft, key=lambda name: float(F.nll_loss(soft[name].log(), labels)))
    method.prepare(Preparation(images, PGD(1), ThreatModel(0.01), 0, tune, replace(images, labels=labels)))
    accuracy = float((soft[best].argmax(-1) == labels).float().mean())
    assert method.facts() == {"balance": pytest.approx(accuracy, abs=1e-5), "teacher": best}


def test_a_suite_s_row_may_have_unlabelled_images_of_its_own(
    tmp_path: Path, shallow_folder: Path, colours: Path
) -> None:
    from apd.bench.plan import make_plan
    from apd.bench.suite import load_suite

    file = tmp_path / "suite.yaml"
    file.write_text(
        f"model: {shallow_folder}\ndata: {{c: {{source: {colours}, shots: 2}}}}\n"
        "methods: {a: advvlp, b: {name: advvlp, data: {unlabelled: rest, unlabelled_limit: 3}}}\n"
        "blocks: [{protocol: few-shot, data: c, methods: [a, b]}]\n"
    )
    one, two = make_plan(load_suite(file)).rows
    assert one.job != two.job and one.evals.keys() == two.evals.keys()
    file.write_text(file.read_text().replace("unlabelled_limit: 3", "seed: 3"))
    with refused("methods.b", "seed"):
        load_suite(file)
