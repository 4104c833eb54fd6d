"""Adversarial Prompt Distillation (ICASSP 2026, arXiv 2411.15244): a clean teacher makes prompts in both branches robust.

Documented in the paper: prompts in both branches at several layers; adversarial images from the student's cross-entropy;
a cleanly pre-trained, non-robust CLIP as teacher; a teacher tuned on clean images along with the student ("online"). The
formula below, its weights, temperature and variants are this project's reconstruction::

    student  L_S = adv_ce * CE(z_S(x'), y) + adv_kl * tau^2 KL(p_T || p_S(x'))
                 + clean_ce * CE(z_S(x), y) + clean_kl * tau^2 KL(p_T(x) || p_S(x))
                 + image_features * [1 - cos(f_S(x'), f_T(x))] + text_features * [1 - cos(t_S, t_T)]
                 + image_features_l2 * ||f_S(x') - f_T(x)||^2
                 + block_states * p_T(x)[y] * mean_l ||h_S,l(x') - h_T,l(x)||^2
    teacher  L_T = CE(z_T(x), y) + feedback * tau^2 KL(p_T(x) || sg[p_S(x')])            (online only)

where adv_ce = 1 - w and adv_kl = w by default, w being the teacher's accuracy (``balance: auto``): its soft labels count as
far as it knows these classes. That is measured on the validation images for the default teacher, which they choose
(`apd.methods.teachers`), and for another one as zero-shot CLIP's, or that of ``teacher_model``, on the few training images.
The attack climbs KL to that mixed label, so that attack and loss are one min-max problem (``inner: mixed``); the paper's own
inner objective, the cross-entropy to y, is ``inner: ce``. Here ``p = softmax(z / tau)``, for the teacher with ``teacher_tau``
in place of tau if it is set (a softer teacher and a sharper student: AGFT, CVPR 2026), but for ``p_T(x)[y]``, which has
temperature 1; ``p_T`` in ``adv_kl`` is the teacher on x, or on x' (``soft_target: adversarial``, AdaAD), or the mean of it and
of ``second_teacher`` on x', a clean CLIP of another architecture that x' does not fool (HPT-GPD). Of an image without a label,
y is the teacher's most probable class; in L_T it counts with 0, so that the teacher does not learn from its own guesses.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks.objectives import (
    Objective,
    cosine_distance,
    cross_entropy,
    kl,
    kl_of_pair,
    kl_to_logits,
    kl_to_probabilities,
    squared_distance,
)
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.errors import InputError
from apd.methods.apd_settings import APDSettings
from apd.methods.base import Method, MethodSettings, Preparation, prompted
from apd.methods.blended import BlendedTeacher
from apd.methods.step import PerObject, Step
from apd.methods.teachers import PARTS, mean_logits, other_clip, predictions, tune_prompts
from apd.models.classifier import BoundCLIP, PromptedCLIP
from apd.models.encoder import EncoderInfo


class APD(Method):
    """Adversarial Prompt Distillation with a frozen, a probed, a clean-tuned or an online teacher, or the mean of some."""

    summary: ClassVar[str] = "adversarial tuning of visual and text tokens, taught by a clean CLIP"
    source: ClassVar[str] = "Adversarial Prompt Distillation (ICASSP 2026, arXiv 2411.15244), reconstructed"
    Settings: ClassVar[type[MethodSettings]] = APDSettings
    settings: APDSettings
    pseudo_labels: ClassVar[bool] = False
    balance: Tensor

    def __init__(self, settings: APDSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        self.untouched = base = other_clip(zero_shot, settings.teacher_model)
        # A seed of its own: a teacher that starts as the student's copy would teach it nothing at first.
        kind, spec = settings.teacher, settings.prompts
        self.blend = BlendedTeacher(kind, base, spec, seed + 1) if kind in PARTS else None
        own = kind in ("tuned", "online")
        self.teacher = prompted(base, spec.fitting(base.encoder.info), seed + 1) if own else base
        self.teacher.requires_grad_(settings.teacher == "online")
        self.teacher.encoder.requires_grad_(False)
        if base.prompts is not None and own:
            raise InputError(
                f"method.teacher_model={settings.teacher_model} has learned prompts, which method.teacher={settings.teacher} "
                "would not use; choose frozen, mean, auto, probe or best."
            )
        self.second = other_clip(zero_shot, settings.second_teacher) if settings.second_teacher else None
        self.robust = other_clip(zero_shot, settings.robust_teacher) if settings.robust_teacher else None
        # Even until `prepare` has measured it.
        share = 0.5 if settings.balance == "auto" else settings.balance
        self.register_buffer("balance", torch.tensor(0.5 if share is None else share))
        # Without self, so that a method is freed as soon as nobody uses it, and with it the models it holds.
        teacher, blend, bound = self.teacher, self.blend, PerObject[PromptedCLIP, BoundCLIP](PromptedCLIP.bind_detached)
        online = PerObject[Step, BoundCLIP](lambda step: teacher.bind())
        self._bound, self._online = bound, online
        self._online_embeds = PerObject[Step, Tensor](lambda step: online(step).embed(step.x))
        self._fixed_embeds = PerObject[Batch, Tensor](lambda batch: bound(teacher).embed(batch.x))
        if blend is not None:
            self._blended_logits = PerObject[Batch, Tensor](lambda batch: blend.logits(batch.x))
        self._fixed_states = PerObject[Batch, Tensor](lambda batch: _states(bound(teacher), batch.x)[1])
        widths = self.teacher.encoder.info.embed_dim, zero_shot.encoder.info.embed_dim
        wanting = [name for name in ("image_features", "image_features_l2", "text_features") if getattr(settings, name)]
        wanting += ["inner=features"] if settings.inner == "features" else []
        _check_blocks(settings, self.teacher.encoder.info, zero_shot.encoder.info)
        if wanting and widths[0] != widths[1]:
            raise InputError(
                f"method.{wanting[0]} needs teacher and student of equal embedding width, got {widths[0]} and {widths[1]}; "
                "leave it out."
            )

    def prepare(self, before: Preparation) -> None:
        """Fit a teacher on clean labelled images, unless it is frozen or online, and measure what it knows.

        Without any label nothing can be measured: soft labels are then all there is.
        """
        known = None
        if self.blend is not None:
            known = self.blend.fit(before)
        elif self.settings.teacher == "tuned":
            tune_prompts(self.teacher, before)
        if self.settings.balance == "auto":
            # If nobody was chosen it is that of the untouched teacher, which has not seen the training images.
            self.balance.fill_(self._untouched_accuracy(before.images) if known is None else known)

    def _untouched_accuracy(self, images: Decoded) -> float:
        if not len(images):
            return 1.0
        known = predictions(self.untouched.bind_detached().logits, images)
        return float((known == images.labels).float().mean())

    def labeller(self) -> PromptedCLIP:
        """Return the untouched teacher."""
        return self.untouched

    def facts(self) -> dict[str, Any]:
        """Return the share of the soft label and the teacher that were used, if there are any: measured or set."""
        found: dict[str, Any] = {} if self.settings.balance is None else {"balance": round(self.balance.item(), 6)}
        if self.blend is not None and self.blend.chosen:
            found |= {"teacher": "+".join(self.blend.used())}
        return found

    def _teacher(self, step: Step) -> BoundCLIP:
        return self._online(step) if self.settings.teacher == "online" else self._bound(self.teacher)

    def _teacher_embeds(self, step: Step) -> Tensor:
        """Return the teacher's features of x (B, D): once per step if it is online, else once per batch."""
        if self.settings.teacher == "online":
            return self._online_embeds(step)
        with torch.no_grad():
            return self._fixed_embeds(step.batch)

    def _teacher_features(self, step: Step) -> Tensor:
        """Return the teacher's features of x (B, D) of unit length."""
        return F.normalize(self._teacher_embeds(step), dim=-1)

    def _teacher_logits(self, step: Step) -> Tensor:
        if self.blend is not None:
            return self._blended_logits(step.batch)
        return self._teacher(step).logits_from_features(self._teacher_features(step))

    def _on_adversarial(self, step: Step) -> BoundCLIP:
        return self._teacher(step).detach() if self.robust is None else self._bound(self.robust)

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """The inner maximisation chosen by ``inner``."""
        if self.settings.inner == "ce":
            return Objective(attacked.logits, cross_entropy, self._hard_labels(step))
        if self.settings.inner == "kl":
            return Objective(attacked.logits, kl_to_logits, step.clean_logits().detach())
        if self.settings.inner == "teacher-kl":
            return Objective(attacked.logits, kl_to_logits, self._teacher_logits(step).detach())
        if self.settings.inner == "features":
            return Objective(attacked.embed, squared_distance, self._teacher_embeds(step).detach())
        if self.settings.inner == "mixed":
            return Objective(attacked.logits, kl_to_probabilities, self._mixed_label(step))
        teacher = self._on_adversarial(step)
        return Objective(lambda x: torch.cat([teacher.logits(x), attacked.logits(x)], dim=1), kl_of_pair, step.labels)

    def _weights(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the weights of the hard and of the soft label on x'."""
        hard, soft = (1.0, 1.0) if self.settings.balance is None else (1 - self.balance, self.balance)
        return hard * self.settings.adv_ce, soft * self.settings.adv_kl

    def _softened(self, z: Tensor) -> Tensor:
        """Scale the teacher's logits so that a division by tau leaves them divided by ``teacher_tau``."""
        s = self.settings
        return z if s.teacher_tau is None else z * (s.tau / s.teacher_tau)

    def _with_second(self, target: Tensor, x_adv: Tensor) -> Tensor:
        """Take the mean of the soft label of logits ``target`` (B, C) and of the second teacher's on x', as logits."""
        assert self.second is not None
        with torch.no_grad():
            second = self._softened(self._bound(self.second).logits(x_adv))
        tau = self.settings.tau
        return tau * mean_logits([target / tau, second / tau], target.new_full((2,), 0.5))

    def _hard_labels(self, step: Step) -> Tensor:
        """The labels (B,); of images without one, the teacher's most probable class."""
        if step.labelled is None:
            return step.labels
        return torch.where(step.labelled, step.labels, self._teacher_logits(step).argmax(dim=-1))

    def _cross_entropy(self, step: Step, z: Tensor) -> Tensor:
        if step.labelled is None:
            return step.cross_entropy(z)
        return F.cross_entropy(z, self._hard_labels(step), label_smoothing=step.smoothing)

    def _mixed_label(self, step: Step) -> Tensor:
        """The probabilities (B, C) towards which the loss draws p_S(x'); exactly so for ``tau = 1`` and soft labels on x."""
        hard, soft = self._weights()
        known = (self._softened(self._teacher_logits(step).detach()) / self.settings.tau).softmax(dim=-1)
        return (hard * F.one_hot(self._hard_labels(step), known.shape[-1]) + soft * known) / (hard + soft)

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """The terms of L_S (and of L_T, where the teacher is online) whose weight is not 0."""
        s = self.settings
        embeds, states = _states(step.student, x_adv) if s.block_states else (step.student.embed(x_adv), None)
        features = F.normalize(embeds, dim=-1)
        z_adv = step.student.logits_from_features(features)
        hard, soft = self._weights()
        terms: dict[str, Tensor] = {}
        if s.adv_ce:
            terms["adv_ce"] = hard * self._cross_entropy(step, z_adv)
        if s.adv_kl:
            terms["adv_kl"] = soft * self._soft(step, x_adv, z_adv)
        if s.clean_ce:
            terms["clean_ce"] = s.clean_ce * self._cross_entropy(step, step.clean_logits())
        if s.clean_kl:
            known = self._softened(self._teacher_logits(step).detach())
            terms["clean_kl"] = s.clean_kl * kl(p=known, q=step.clean_logits(), tau=s.tau).mean()
        if s.image_features:
            away = cosine_distance(features, self._teacher_features(step).detach())
            terms["image_features"] = s.image_features * away.mean()
        if s.image_features_l2:
            distance = squared_distance(embeds, self._teacher_embeds(step).detach())
            terms["image_features_l2"] = s.image_features_l2 * distance.mean()
        if states is not None:
            terms["block_states"] = s.block_states * self._block_distance(step, states)
        if s.text_features:
            classes = self._teacher(step).classes.detach()
            terms["text_features"] = s.text_features * cosine_distance(step.student.classes, classes).mean()
        if s.teacher == "online":
            z_teacher = self._teacher_logits(step)
            terms["teacher_ce"] = step.cross_entropy(z_teacher)
            if s.feedback:
                terms["feedback"] = s.feedback * kl(p=self._softened(z_teacher), q=z_adv.detach(), tau=s.tau).mean()
        return terms

    def _block_distance(self, step: Step, states: Tensor) -> Tensor:
        """Mean distance of the student's states (depth, B, width) at x' to the teacher's at x, by its confidence in y."""
        # Outside of no_grad: what an online teacher says is kept for the step, and its own loss needs the graph.
        logits = self._teacher_logits(step)
        with torch.no_grad():
            if self.settings.teacher == "online":
                known = _states(self._online(step), step.x)[1]
            else:
                known = self._fixed_states(step.batch)
            sure = logits.softmax(dim=-1).gather(1, self._hard_labels(step)[:, None])[:, 0]
        return ((states - known).square().sum(dim=-1).mean(dim=0) * sure).mean()

    def _soft(self, step: Step, x_adv: Tensor, z_adv: Tensor) -> Tensor:
        """``KL(p_T || p_S(x'))`` with the teacher's soft label on x or x', trusted or not."""
        adversarial = None
        if self.settings.soft_target == "adversarial" or self.settings.trust:
            # Bound outside of no_grad: an online teacher is bound once a step, and needs its graph for its own loss.
            teacher = self._on_adversarial(step)
            with torch.no_grad():
                adversarial = teacher.logits(x_adv)
        target = adversarial if self.settings.soft_target == "adversarial" else self._teacher_logits(step).detach()
        assert target is not None
        target = self._softened(target)
        if self.second is not None:
            target = self._with_second(target, x_adv)
        if not self.settings.trust:
            return kl(p=target, q=z_adv, tau=self.settings.tau).mean()
        assert adversarial is not None
        # Our form of IAD (Zhu 2022): follow the teacher as far as it is right on x', the student's own clean prediction for
        # the rest.
        trust = (
            adversarial.softmax(dim=-1).gather(1, self._hard_labels(step)[:, None]).squeeze(1) ** self.settings.trust
        )
        follow = kl(p=target, q=z_adv, tau=self.settings.tau)
        introspect = kl(p=step.clean_logits().detach(), q=z_adv, tau=self.settings.tau)
        return (trust * follow + (1 - trust) * introspect).mean()


def _states(classifier: BoundCLIP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, D), and the class token's states after each block (depth, B, width), of unit length."""
    embeds, states = classifier.embed_by_block(x)
    return embeds, F.normalize(states, dim=-1)


def _check_blocks(settings: APDSettings, teacher: EncoderInfo, student: EncoderInfo) -> None:
    """Refuse to compare the blocks of towers that have not as many, or not as wide ones."""
    towers = [(info.visual_depth, info.visual_width) for info in (teacher, student)]
    if settings.block_states and towers[0] != towers[1]:
        (depth, width), (own_depth, own_width) = towers
        raise InputError(
            f"method.block_states needs image towers of the same shape, got {depth} blocks of {width} for the teacher and "
            f"{own_depth} of {own_width} for the student; leave it out."
        )
