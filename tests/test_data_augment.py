"""Random resized crop: against a slow reference, and sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from apd.data import random_resized_crop_flip
from apd.data.augment import random_boxes

from .refusals import refused

SCALE, RATIO = (0.6, 1.0), (3 / 4, 4 / 3)


def cubic(distance: float, a: float = -0.75) -> float:
    """Keys' kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def weights(position: float, side: int) -> Tensor:
    """What each pixel of a row of ``side`` counts at ``position`` (pixel i has its centre at i + 0.5); edges repeat."""
    result = torch.zeros(side, dtype=torch.float64)
    base = math.floor(position - 0.5)
    for tap in range(base - 1, base + 3):
        result[min(max(tap, 0), side - 1)] += cubic(position - 0.5 - tap)
    return result


def reference(image: Tensor, box: Tensor, size: int, mirror: bool) -> Tensor:
    """The crop of one image (3,S,S), pixel by pixel."""
    side = image.shape[-1]
    left, top, width, height, flip = box.double().tolist()
    columns = [left + width * (i + 0.5) / size for i in range(size)]
    rows = [top + height * (i + 0.5) / size for i in range(size)]
    if mirror and flip:
        columns = columns[::-1]
    across = torch.stack([weights(x * side, side) for x in columns])
    down = torch.stack([weights(y * side, side) for y in rows])
    return torch.einsum("yh,chw,xw->cyx", down, image.double(), across).clamp(0, 1).float()


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("size", [9, 16])
def test_agrees_with_a_slow_reference(size: int, mirror: bool) -> None:
    images = torch.rand(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(6)
    boxes = random_boxes(seeds, SCALE, RATIO)
    assert 0 < boxes[:, 4].sum() < 6  # some are flipped, some are not
    result = random_resized_crop_flip(images, seeds, size=size, mirror=mirror)
    expected = torch.stack([reference(image, box, size, mirror) for image, box in zip(images, boxes, strict=True)])
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_whole_image_at_its_own_size_is_itself_or_its_mirror_image() -> None:
    images = torch.rand(8, 3, 12, 12)
    seeds = torch.arange(8)
    flipped = random_boxes(seeds, (1.0, 1.0), (1.0, 1.0))[:, 4].bool()
    result = random_resized_crop_flip(images, seeds, size=12, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    expected = torch.where(flipped[:, None, None, None], images.flip(3), images)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert flipped.any() and not flipped.all()


def test_a_sample_gets_the_same_crop_in_any_batch() -> None:
    images = torch.rand(5, 3, 10, 10)
    seeds = torch.tensor([7, -3, 2**40, 0, 11])
    together = random_resized_crop_flip(images, seeds, size=10)
    order = torch.tensor([3, 1, 4])
    assert torch.equal(random_resized_crop_flip(images[order], seeds[order], size=10), together[order])
    assert not torch.equal(random_resized_crop_flip(images, seeds + 1, size=10), together)


def test_boxes_lie_inside_and_have_the_promised_shares() -> None:
    left, top, width, height, flip = random_boxes(torch.arange(3000), SCALE, RATIO).unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    area, aspect = width * height, width / height
    assert area.min() >= 0.6 - 1e-5 and area.max() <= 1 + 1e-5
    assert aspect.min() >= 0.75 - 1e-5 and aspect.max() <= 4 / 3 + 1e-5
    assert abs(float(flip.mean()) - 0.5) < 0.04
    assert abs(float(aspect.log().mean())) < 0.01  # as often wide as high
    assert float((left / (1 - width).clamp_min(1e-6)).mean()) == pytest.approx(0.5, abs=0.03)


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    boxes = random_boxes(torch.arange(4), (1.0, 1.0), (2.0, 3.0))
    assert boxes[:, :4].tolist() == [[0, 0, 1, 1]] * 4


def test_stays_in_the_unit_interval() -> None:
    checks = (torch.rand(16, 3, 8, 8) > 0.5).float()  # bicubic sampling overshoots at edges
    result = random_resized_crop_flip(checks, torch.arange(16), size=20)
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize(
    "arguments", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}], ids=["zero", "falling", "ratio"]
)
def test_impossible_boxes_are_refused(arguments: dict[str, tuple[float, float]]) -> None:
    ((name, value),) = arguments.items()
    with refused(name, str(value)):
        random_resized_crop_flip(torch.rand(1, 3, 8, 8), torch.tensor([0]), size=8, **arguments)  # type: ignore[arg-type]


def test_images_must_be_square() -> None:
    with refused("(1, 3, 8, 9)"):
        random_resized_crop_flip(torch.rand(1, 3, 8, 9), torch.tensor([0]), size=8)
