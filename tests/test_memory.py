"""Out of memory: images go through the tower in smaller parts, and what is learned and measured stays the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apd.evaluation import Result, evaluate_tensors, parse_settings
from apd.models import DualEncoder
from apd.models.classifier import BoundCLIP
from apd.models.huggingface import HuggingFaceEncoder
from apd.models.parts import InParts, within
from apd.util.memory import Room, is_out_of_memory

from .toys import decoded, trained
from .training import start


def full(limit: int, error: type[Exception] | Exception, tries: list[int]) -> Any:
    """An image tower that has no room for more than ``limit`` images at a time."""
    encode = HuggingFaceEncoder.encode_image

    def small(self: Any, x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        tries.append(len(x))
        if len(x) > limit:
            raise error
        return encode(self, x, *rest, **more)

    return small


FULL = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.fixture(scope="module")
def learned(
    tmp_path_factory: pytest.TempPathFactory, shallow: DualEncoder, colours: Path
) -> Callable[..., dict[str, Tensor]]:
    """What a training with these settings learns where memory is enough; each is trained once."""

    @cache
    def prompts(*sets: str) -> dict[str, Tensor]:
        return start(tmp_path_factory.mktemp("enough") / "run", shallow, colours, *sets).load_prompts()

    return prompts


@pytest.mark.parametrize(
    ("kind", "epochs", "error"),
    [("pgd", 2, FULL[0]), ("pgd", 2, FULL[1]), ("free", 4, FULL[0]), ("carried", 4, FULL[1])],
    ids=["pgd-device", "pgd-machine", "free-device", "carried-machine"],
)
def test_a_training_out_of_memory_halves_what_the_tower_gets_and_learns_the_same(
    tmp_path: Path,
    shallow: DualEncoder,
    colours: Path,
    learned: Callable[..., dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    epochs: int,
    error: Exception,
) -> None:
    sets = (f"train.attack.kind={kind}", f"train.epochs={epochs}", "method.teacher=frozen")
    before = learned(*sets)
    tries: list[int] = []
    monkeypatch.setattr(HuggingFaceEncoder, "encode_image", full(3, error, tries))
    after = start(tmp_path / "parts", shallow, colours, *sets).load_prompts()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-4)
    assert max(tries) > 3 and tries[-1] <= 3


def test_out_of_memory_with_a_single_image_is_an_error(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    monkeypatch.setattr(HuggingFaceEncoder, "encode_image", full(0, FULL[0], tries))
    with pytest.raises(torch.OutOfMemoryError):
        start(tmp_path / "run", shallow, colours, "method=vlp")
    assert [n for i, n in enumerate(tries) if n not in tries[:i]] == [8, 4, 2, 1]


def test_parts_of_a_batch_have_its_features_and_gradients(shallow: DualEncoder) -> None:
    side = shallow.info.image_size
    x = torch.rand(5, 3, side, side)
    tokens = [0.1 * torch.randn(2, shallow.info.visual_width) for _ in range(2)]

    def grads(most: int | None) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), *(t.clone().requires_grad_() for t in tokens)]
        with within(Room(most)):
            bound = BoundCLIP(shallow, torch.eye(3, shallow.info.embed_dim), tuple(leaves[1:]))
            features, states = bound.embed_by_block(leaves[0])
            loss = bound.logits(leaves[0]).logsumexp(1).sum() + features.square().sum() + states.square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    for most in (1, 2, 4):
        for part, whole in zip(grads(most), grads(None), strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    """A classifier without room for more than a few images at a time."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        super().__init__()
        self.model, self.limit, self.largest = model, limit, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise FULL[0]
        self.largest = max(self.largest, len(x))
        z: Tensor = self.model(x)
        return z


CHOSEN = parse_settings({"attacks": ("pgd-3", "apgd-ce"), "eps": 0.05, "control": False, "batch_size": 8})


@cache
def measured() -> Result:
    """An evaluation where memory is enough."""
    return evaluate_tensors(trained(5), decoded(10, 5, seed=5), tuple("abcde"), CHOSEN)


@pytest.mark.usefixtures("short_checks")
@pytest.mark.parametrize("size", [8, None])
def test_an_evaluation_out_of_memory_has_the_same_outcomes(tmp_path: Path, size: int | None) -> None:
    """Attacks that draw for a whole batch too: the batch stays, only the model gets parts of it."""
    names, images = tuple("abcde"), decoded(10, 5, seed=5)
    settings, whole = CHOSEN, measured()
    model = Small(trained(5), 3)
    parts = evaluate_tensors(model, images, names, settings.model_copy(update={"batch_size": size}), store=tmp_path)
    assert 1 < model.largest <= 3
    assert 0 < whole.worst.accuracy < whole.clean
    assert parts.attacks.keys() == whole.attacks.keys()
    if size is not None:
        assert parts.predictions == whole.predictions
        passed = [[(check.name, check.passed) for check in result.checks] for result in (parts, whole)]
        assert passed[0] == passed[1]


def test_what_counts_as_out_of_memory() -> None:
    wrapped = ValueError("it broke")
    wrapped.__cause__ = MemoryError()
    assert all(map(is_out_of_memory, [*FULL, MemoryError(), wrapped]))
    assert not any(map(is_out_of_memory, [RuntimeError("shapes differ"), OSError(12, "no"), None]))


def test_room_is_halved_until_it_fits_and_then_kept() -> None:
    tries: list[int | None] = []

    def work(room: Room, limit: int) -> int | None:
        for attempt in room.attempts(20):
            with attempt:
                tries.append(room.most)
                if (room.most or 20) > limit:
                    raise MemoryError
        return room.most

    room = Room()
    assert (work(room, 6), work(room, 6), tries) == (5, 5, [None, 10, 5, 5])
    with pytest.raises(MemoryError):
        work(room, 0)
    assert room.most == 1


def test_parts_of_any_classifier_give_its_logits_and_gradients() -> None:
    model, x = trained(5), decoded(7, 5).images[:7] / 255
    found = []
    for judge in (model, InParts(model, 3)):
        pixels = x.clone().requires_grad_()
        z = judge(pixels)
        found.append((z.detach(), torch.autograd.grad(z.logsumexp(1).sum(), pixels)[0]))
    for part, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(part, whole)
