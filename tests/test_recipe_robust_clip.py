"""The robust CLIP's recipe: what it minimises and moves, what it saves, and that a seed decides all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from apd import PromptedCLIP
from apd.models import load_clip
from apd.models.huggingface import HuggingFaceEncoder
from apd.runs.config import RunConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from recipes import robust_clip

from .refusals import meant, refused

CLASSES = ("blue", "green", "red")


def options(clip: Path, data: Path, output: Path, *more: str) -> list[str]:
    """A recipe of five steps."""
    given = ["--model", clip, "--data", data, "--output", output, "--shots", "3", "--batch", "2", "--epochs", "1"]
    return [*map(str, given), "--eps", "8/255", "--lr", "1e-3", "--fare", "0.1", *more]


def config_of(arguments: list[str]) -> RunConfig:
    return robust_clip.config_of(robust_clip.parser().parse_args(arguments))


def tuning(clip: Path, colours: Path, *more: str, fare: float = 0.1) -> robust_clip.FineTuning:
    config = config_of(options(clip, colours, Path("unused"), *more))
    encoder = load_clip(clip)
    assert isinstance(encoder, HuggingFaceEncoder)
    return robust_clip.FineTuning(encoder, config.data.load(config.train.seed), config.train, fare)


def encoder_of(found: robust_clip.FineTuning) -> HuggingFaceEncoder:
    encoder = found.model.encoder
    assert isinstance(encoder, HuggingFaceEncoder)
    return encoder


def weights(folder: Path) -> dict[str, Tensor]:
    encoder = load_clip(folder)
    assert isinstance(encoder, HuggingFaceEncoder)
    return dict(encoder.model.named_parameters())


def ran(clip: Path, colours: Path, checkpoint: Path, *more: str, stop: int | None = None) -> dict[str, Tensor]:
    found = tuning(clip, colours, *more)
    found.run(checkpoint, "same", show=False, stop=stop)
    return {name: weight.detach().clone() for name, weight in found.tower.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def features(model: CLIPModel, x: Tensor, encoder: HuggingFaceEncoder) -> Tensor:
    pooled = model.vision_model(pixel_values=(x - encoder.mean) / encoder.std).pooler_output
    return model.visual_projection(pooled)


def test_loss_and_gradients_are_those_of_the_formula(clip_folder: Path, colours: Path) -> None:
    found = tuning(clip_folder, colours)
    batch = found.batches.draw(0, 0)
    with torch.no_grad():  # away from where f(x) and f_0(x) are equal
        for weight in found.tower.values():
            weight.mul_(1.05)
    x_adv = (batch.x + 0.1 * torch.rand(batch.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    found.attack = lambda objective, x, threat, seeds: x_adv
    loss = found.loss(batch)
    loss.backward()

    original, moved = (CLIPModel.from_pretrained(clip_folder).eval() for _ in range(2))
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            weight.mul_(1.05 if name.startswith(("vision_model", "visual_projection")) else 1.0)
    tokens = AutoTokenizer.from_pretrained(clip_folder)([f"a photo of a {name}." for name in CLASSES], padding=True)
    text = original.text_projection(original.text_model(torch.tensor(tokens["input_ids"])).pooler_output)
    f = features(moved, x_adv, encoder_of(found))
    cosines = F.normalize(f, dim=-1) @ F.normalize(text.detach(), dim=-1).T
    rows = (original.logit_scale.exp().detach() * cosines).log_softmax(-1)
    distance = (f - features(original, batch.x, encoder_of(found)).detach()).pow(2).sum(-1)
    expected = sum(0.1 * distance[i] - rows[i, y] for i, y in enumerate(batch.labels.tolist())) / len(batch.labels)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted = dict(moved.named_parameters())
    for name, weight in found.tower.items():
        torch.testing.assert_close(weight.grad, wanted[name].grad, rtol=1e-3, atol=1e-5)


def test_images_are_attacked_where_the_tower_is_now(clip_folder: Path, colours: Path) -> None:
    found = tuning(clip_folder, colours, fare=0.0)
    batch, seen = found.batches.draw(0, 0), []
    attack = found.attack
    found.attack = lambda *given: seen.append(attack(*given)) or seen[-1]
    loss = found.loss(batch)
    assert 0 < (seen[0] - batch.x).abs().max() <= 8 / 255 + 1e-6
    with torch.no_grad():
        clean, attacked = (F.cross_entropy(found.model.logits(x), batch.labels) for x in (batch.x, seen[0]))
    assert attacked > clean and loss.item() == pytest.approx(attacked.item())
    assert all(weight.grad is None for weight in found.tower.values()), "the attack asks for pixels' gradients alone"


def test_only_the_image_tower_moves_and_the_folder_holds_it(
    clip_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "runs" / "robust"
    monkeypatch.setattr(sys, "argv", ["robust_clip", *options(clip_folder, colours, output)])
    robust_clip.main()
    assert [entry.name for entry in output.parent.iterdir()] == ["robust"], "no checkpoint and no half folder is left"

    before, after = weights(clip_folder), weights(output)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("vision_model.", "visual_projection."))}

    found = tuning(clip_folder, colours)
    found.run(tmp_path / "checkpoint", "again", show=False)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loaded = load_clip(output)
    assert (loaded.info.tokenizer_sha256, loaded.info.preprocessing) == (
        encoder_of(found).info.tokenizer_sha256,
        encoder_of(found).info.preprocessing,
    )
    with torch.no_grad():
        assert torch.equal(PromptedCLIP(loaded, None, CLASSES)(x), found.model.logits(x))
        assert not torch.equal(PromptedCLIP(load_clip(clip_folder), None, CLASSES)(x), found.model.logits(x))


def test_a_seed_decides_the_weights(clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    first, second = (ran(clip_folder, colours, tmp_path / name) for name in "ab")
    assert equal(first, second)
    assert not equal(first, ran(clip_folder, colours, tmp_path / "c", "--seed", "1"))


def test_stopped_and_gone_on_with_is_the_same(clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    whole = ran(clip_folder, colours, tmp_path / "whole")
    part = ran(clip_folder, colours, tmp_path / "parts", stop=2)
    assert not equal(part, whole)
    assert equal(ran(clip_folder, colours, tmp_path / "parts"), whole)


def test_fine_tuning_makes_it_robust(clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    found = tuning(clip_folder, colours, "--epochs", "6", fare=0.0)
    batch = found.batches.draw(0, 0)
    before = found.loss(batch).item()
    found.run(tmp_path / "checkpoint", "", show=False)
    assert found.loss(batch).item() < 0.9 * before


def test_what_is_refused(
    clip_folder: Path,
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran(clip_folder, colours, tmp_path / "checkpoint", stop=1)
    with refused(str(tmp_path / "checkpoint"), "remove"):
        tuning(clip_folder, colours).run(tmp_path / "checkpoint", "other", show=False)
    for more, named in [(("--eps", "8"), meant("8/255")), (("--output", str(colours)), str(colours))]:
        monkeypatch.setattr(sys, "argv", ["robust_clip", *options(clip_folder, colours, tmp_path / "new", *more)])
        with pytest.raises(SystemExit) as stop:
            robust_clip.main()
        assert stop.value.code == 2 and named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
