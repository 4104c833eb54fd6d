"""The loss is its formula, worked out by hand on two images, and its gradient reaches every prompt. Run it with pytest."""

from __future__ import annotations

import math

import torch
from apd_mart import MART, MARTSettings

import apd
from apd.data.batch import Batch
from apd.methods import Step


def test_the_loss_is_the_formula_and_reaches_the_prompts() -> None:
    clip = apd.load_clip("glyphs")  # built in; its images are small
    plain = apd.PromptedCLIP(clip, None, ["ring", "cross", "dot"], ["a photo of a {}."])
    method = MART(MARTSettings(beta=3.0), plain)
    torch.manual_seed(0)
    x, x_adv = torch.rand(2, 2, 3, clip.info.image_size, clip.info.image_size)
    terms = method.loss(Step(Batch.of(x, torch.tensor([2, 0])), method.student.bind()), x_adv)
    loss = torch.stack(list(terms.values())).sum()

    by_hand = 0.0
    clean, attacked = (method.student(images).softmax(1).tolist() for images in (x, x_adv))
    for p, q, y in zip(clean, attacked, (2, 0), strict=True):
        by_hand -= math.log(q[y]) + math.log(1.0001 - max(q[:y] + q[y + 1 :]))
        by_hand += 3.0 * (1 - p[y]) * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert math.isclose(loss.item(), by_hand / 2, rel_tol=1e-4)

    loss.backward()
    prompts = method.student.prompts
    assert prompts is not None and all(p.grad is not None and p.grad.any() for p in prompts.parameters())
