"""Training on images that move with the prompts: free (replayed batches) and carried (kept from epoch to epoch)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apd.attacks import sample_seeds
from apd.attacks.persistent import Carried
from apd.attacks.threat import ThreatModel
from apd.data.dataset import Decoded
from apd.models import DualEncoder
from apd.settings.train import AttackSettings, TrainSettings
from apd.training.batches import Batches, TrainingImages

from .refusals import refused
from .training import PLAIN, metrics, start

EPS = 4 / 255
LABELS = torch.tensor([0, 2, 1, 1])
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_free_training_makes_as_many_updates_and_fewer_visits(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits, draw = [], Batches.draw
    monkeypatch.setattr(
        Batches, "draw", lambda self, number, step: (visits.append((number, step)), draw(self, number, step))[1]
    )
    switches = ("train.attack.kind=free", "train.attack.replays=4", "train.validate_every=1", "train.epochs=5")
    rows = metrics(start(tmp_path / "run", clip, colours, *PLAIN, *switches))
    assert visits == [(0, 0), (1, 4), (2, 8)]  # 2 batches x 5 epochs = 10 updates: 4 + 4 + 2
    assert [row["step"] for row in rows if "loss" in row] == [4, 8, 10]
    assert [row["step"] for row in rows if "val_clean" in row] == [4, 8, 10]


def test_clean_methods_do_not_replay(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    a, b = (
        start(tmp_path / name, clip, colours, "method.name=vlp", *extra).load_prompts()
        for name, extra in (("a", ()), ("b", ("train.attack.kind=free",)))
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def carried(**settings: object) -> tuple[Carried, Batches]:
    images = Decoded((X * 255).to(torch.uint8), LABELS, tuple("abcd"))
    batches = Batches(TrainingImages(images, images, 16, True), TrainSettings(batch_size=4, **settings))
    pixels = Carried.from_settings(AttackSettings(kind="carried"))
    batches.hand_over(pixels, ThreatModel(EPS))
    return pixels, batches


def test_carried_perturbations_go_through_the_crop_and_stay_in_the_ball() -> None:
    """A linear loss, always the same crop: its pixels end at the best of the ball, also where they had been at its edge."""
    pixels, batches = carried()
    threat, batch = ThreatModel(EPS), batches.draw(0, 0)
    weights, values = torch.randn(X.shape, generator=torch.Generator().manual_seed(1)), []
    for sign in (1, 1, 1, -1, -1, -1):
        pixels.begin(batch, threat)
        view = pixels.view(batch, threat)
        (sign * weights * view).sum().backward()
        pixels.climb(batch, threat)
        values.append(float((weights * (view.detach() - batch.x)).sum()))
        assert torch.equal(threat.project(view.detach(), batch.x), view.detach())
    limit = float(weights.abs().sum()) * EPS
    assert abs(values[0]) < 0.2 * limit and values[3] > 0.5 * limit and values[5] < -0.5 * limit
    clean = batches.images.train.pixels()
    assert torch.allclose(threat.project(pixels.kept, clean), pixels.kept, atol=1e-6)


def test_carried_images_start_as_one_batch_of_all_would_and_must_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, batches = carried()
    train = batches.images.train
    expected = ThreatModel(EPS).random_start(train.pixels(), sample_seeds(train.ids, 0, "start"))
    monkeypatch.setattr(Carried, "images_at_once", 3)
    parts, _ = carried()
    assert torch.equal(parts.kept, expected) and torch.equal(whole.kept, expected)
    need = 4 * batches.images.train.images.numel()
    monkeypatch.setattr("apd.attacks.persistent.free_memory", lambda device: 3 * need)
    carried()
    monkeypatch.setattr("apd.attacks.persistent.free_memory", lambda device: 3 * need - 1)
    with refused("train.attack.kind=carried", "4", "cpu", "kind=free", "data.shots"):
        carried()


def test_carried_perturbations_need_one_process() -> None:
    _, batches = carried()
    batches.processes = 2
    with refused("train.attack.kind", "2", "kind=free"):
        batches.hand_over(Carried(), ThreatModel(EPS))


def test_moving_pixels_need_a_loss_that_sees_them(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    switches = ("method.adv_ce=0", "method.adv_kl=0", "method.inner=ce", "method.clean_ce=1", "train.attack.kind=free")
    with refused("train.attack.kind=free", "kind=pgd"):
        start(tmp_path / "run", clip, colours, *switches)
