"""Our training step beside the step as commonly published and beside its floor.

The published step is a reconstruction of FAP's public code (github.com/lionel-w2/FAP; `trainers/fap.py` and `attack/pgd.py`,
read in the copy github.com/aheldis/FAP at 26a6e54), on the same towers as the floor. It runs both towers for the clean and for
the adversarial images in every attack step, class prompts at full length, keeps the graph, and ``loss.backward()`` takes
gradients of everything. The floor is the passes that no implementation of the same step can leave out, run bare: no loss, no
library code but the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import apd
from apd.attacks import PGD
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.methods import Method, find_method
from apd.models.prompts import Prompts
from apd.settings.train import TrainSettings
from apd.training.step import TrainStep
from benchmarks.geometry import class_names
from benchmarks.towers import Towers

THREAT = ThreatModel(1 / 255)


@dataclass(frozen=True)
class Problem:
    """One training step: a method with its student, images, and the bare towers of the same CLIP.

    Args:
        method: ours.
        towers: with equal weights.
        x, labels, seeds: the batch.
        steps: of PGD.
        bf16: encoder passes under bfloat16 autocast.
    """

    method: Method
    towers: Towers
    x: Tensor
    labels: Tensor
    seeds: Tensor
    steps: int = 2
    bf16: bool = False

    @property
    def prompts(self) -> Prompts:
        """What is trained."""
        assert self.method.student.prompts is not None
        return self.method.student.prompts

    def bare(self, own_kernels: bool) -> Towers:
        """The bare towers, on our kernels or on torch's default ones."""
        return self.towers.on_our_kernels(self.method.student.encoder) if own_kernels else self.towers

    def ids(self) -> Tensor:
        """Class prompts at full length (C, 77)."""
        names = [f"{name}." for name in self.method.student.class_names]
        return self.method.student.encoder.prompt_ids(names, self.prompts.spec.text_tokens)

    def autocast(self) -> torch.autocast:
        """The precision of the encoder passes."""
        return torch.autocast(self.x.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def problem(
    encoder: apd.DualEncoder,
    towers: Towers,
    name: str,
    settings: Mapping[str, Any],
    batch: int,
    classes: int,
    **rest: Any,
) -> Problem:
    """A problem of random images on this CLIP."""
    cls = find_method(name)
    student = apd.PromptedCLIP(encoder, None, class_names(classes))
    method = cls(cls.Settings.model_validate(settings), student, seed=0).to(encoder.device)
    size, generator = encoder.info.image_size, torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, size, size, generator=generator).to(encoder.device)
    labels = torch.arange(batch, device=encoder.device) % classes
    return Problem(method, towers, x, labels, torch.arange(batch), **rest)


def ours(p: Problem) -> Callable[[], Tensor]:
    """Our step up to the prompts' gradients; returns the loss."""
    settings = TrainSettings(precision="bf16" if p.bf16 else "fp32")
    step, batch = TrainStep(p.method, settings, PGD(steps=p.steps, step_size=1.0)), Batch.of(p.x, p.labels)

    def run() -> Tensor:
        p.method.zero_grad()
        loss = torch.stack(list(step(batch, THREAT)[0].values())).sum()
        loss.backward()
        return loss.detach()

    return run


def published(p: Problem, x_adv: Tensor | None = None, own_kernels: bool = False) -> Tensor:
    """FAP's step as commonly written; returns the loss.

    Args:
        p: the problem.
        own_kernels: on our kernels instead of torch's default ones, which leaves what is computed as the only difference.
        x_adv: adversarial images (B,3,S,S) to train on; None: those of the step's own attack.
    """
    ids, towers = p.ids(), p.bare(own_kernels)  # at full length

    def both_towers(images: Tensor) -> tuple[Tensor, Tensor]:
        text = F.normalize(towers.text(ids, p.prompts.text()), dim=-1)
        image = F.normalize(towers.image(images, p.prompts.visual()), dim=-1)
        return image, p.method.student.encoder.info.logit_scale * image @ text.T

    with p.autocast():
        if x_adv is None:
            x_adv = THREAT.random_start(p.x, p.seeds)
            for _ in range(p.steps):
                x_adv.requires_grad_()
                (_, z), (_, z_adv) = both_towers(p.x), both_towers(x_adv)
                F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="sum").backward()
                assert x_adv.grad is not None
                x_adv = THREAT.project(x_adv.detach() + THREAT.eps * x_adv.grad.sign(), p.x)
        p.method.zero_grad()
        (f, z), (f_adv, z_adv) = both_towers(p.x), both_towers(x_adv)
        divergence = F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="none").sum(1)
        loss = F.cross_entropy(z, p.labels) + 1.5 * ((F.cosine_similarity(f, f_adv) + 1) * divergence).mean()
    loss.backward()
    return loss.detach()


def floor(p: Problem, clean: bool = False, teacher: str | None = None, own_kernels: bool = True) -> Callable[[], None]:
    """The unavoidable passes, by default on the kernels that ours uses.

    One cut-length text forward and backward; forward and backward to the pixels for every attack step; forward and
    backward on adversarial images. FAP also needs both on clean images (``clean``), a frozen teacher one forward on clean
    images, an online one forward and backward on them and a text forward and backward of its own.
    """
    towers, ids = p.bare(own_kernels), p.method.student.encoder.trim(p.ids())
    text, visual = leaves(p.prompts.text()), leaves(p.prompts.visual())
    fixed = [tokens.detach() for tokens in visual]
    teachers = p.method.teacher.prompts if teacher == "online" else None
    led = [(leaves(teachers.text()), leaves(teachers.visual()))] if teachers is not None else []

    def run() -> None:
        outputs = [towers.text(ids, text)]
        if clean:
            outputs.append(towers.image(p.x, visual))
        if teacher == "frozen":
            with torch.no_grad():
                towers.image(p.x)
        for text_tokens, visual_tokens in led:
            outputs += [towers.text(ids, text_tokens), towers.image(p.x, visual_tokens)]
        for _ in range(p.steps):
            x_adv = p.x.clone().requires_grad_()
            features = towers.image(x_adv, fixed)
            torch.autograd.grad(features, x_adv, torch.ones_like(features))
        outputs.append(towers.image(p.x, visual))
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def run_cast() -> None:
        with p.autocast():
            run()

    return run_cast


def leaves(tokens: list[Tensor]) -> list[Tensor]:
    """Copies of prompt tokens that take gradients themselves."""
    return [t.detach().clone().requires_grad_() for t in tokens]
