"""Adversarial Prompt Distillation (arXiv 2411.15244): a clean teacher makes prompts in both branches robust.

Documented in the paper: prompts in both branches at several layers; adversarial images from the student's cross-entropy;
a cleanly pre-trained, non-robust CLIP as teacher; a teacher tuned on clean images along with the student ("online"). The
formula below, its weights, temperature and variants are this project's reconstruction::

    student  L_S = adv_ce * CE(z_S(x'), y) + adv_kl * tau^2 KL(p_T || p_S(x'))
                 + clean_ce * CE(z_S(x), y) + clean_kl * tau^2 KL(p_T(x) || p_S(x))
                 + image_features * [1 - cos(f_S(x'), f_T(x))] + text_features * [1 - cos(t_S, t_T)]
    teacher  L_T = CE(z_T(x), y) + feedback * tau^2 KL(p_T(x) || sg[p_S(x')])            (online only)

where adv_ce = 1 - w and adv_kl = w by default, w being the accuracy of the untouched teacher on the few training images
(``balance: auto``): its soft labels count as far as it knows these classes. The attack climbs KL to that
mixed label, so that attack and loss are one min-max problem (``inner: mixed``); the paper's own inner objective, the
cross-entropy to y, is ``inner: ce``. Here ``p = softmax(z / tau)``; ``p_T`` in
``adv_kl`` is the teacher on x, or on x' (``soft_target: adversarial``, AdaAD).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from apd import losses
from apd.attacks.base import Objective
from apd.attacks.objectives import cross_entropy, kl, kl_from_logits, kl_of_pair
from apd.errors import InputError
from apd.methods.base import Method, MethodSettings, Preparation, Step, prompted
from apd.methods.clean import VLP
from apd.models.classifier import BoundCLIP, PromptedCLIP
from apd.models.shared import shared_clip

if TYPE_CHECKING:
    from apd.data.dataset import Decoded
    from apd.settings.train import AttackKind, TrainSettings

Teacher = Literal["frozen", "tuned", "online"]
_BATCH = 256

VARIANTS: dict[str, dict[str, Any]] = {
    # Hard and soft labels, the soft ones as far as the untouched CLIP knows these classes, in loss and attack (this
    # project's choice).
    "apd": {"adv_ce": 1.0, "adv_kl": 1.0, "balance": "auto", "inner": "mixed"},
    # T^2 KL(p_T(x) || p_S(x')) plus CE on clean images (Goldblum 2020).
    "ard": {"adv_ce": 0.0, "adv_kl": 1.0, "clean_ce": 1.0},
    # Soft labels only, on x and on x', and in the inner maximisation (Zi 2021).
    "rslad": {"adv_ce": 0.0, "adv_kl": 5 / 6, "clean_kl": 1 / 6, "inner": "teacher-kl"},
    # The teacher is trusted as far as it is right on x' (Zhu 2022).
    "iad": {"adv_ce": 0.0, "adv_kl": 1.0, "clean_ce": 1.0, "trust": 0.1},
    # The inner maximisation chases the teacher's own answer on x' (Huang 2023).
    "adaad": {"adv_ce": 0.0, "adv_kl": 1.0, "inner": "teacher-pair", "soft_target": "adversarial"},
    # A clean teacher on x and a robust one on x' (Zhao 2022), at fixed balance.
    "mtard": {"adv_ce": 0.0, "adv_kl": 0.5, "clean_kl": 0.5, "soft_target": "adversarial"},
}


class APDSettings(MethodSettings):
    """Settings of APD; ``variant`` presets the ones that its source prescribes, and explicit values win over it."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = VARIANTS
    models: ClassVar[tuple[str, ...]] = ("teacher_model", "robust_teacher")

    variant: Literal["apd", "ard", "rslad", "iad", "adaad", "mtard"] = Field(
        "apd", description="preset of weights and inner objective"
    )
    teacher: Teacher = Field(
        "frozen",
        description="frozen: the hand-written prompt; tuned: on clean images first; online: along with the student",
    )
    teacher_model: str | None = Field(
        None, description="another CLIP as teacher (any model source); null: the student's own"
    )
    robust_teacher: str | None = Field(None, description="mtard: an adversarially trained CLIP, the teacher on x'")
    adv_ce: float = Field(0.0, ge=0, description="weight of CE(z_S(x'), y)")
    adv_kl: float = Field(1.0, ge=0, description="weight of KL(p_T || p_S(x'))")
    balance: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description="share w of the soft label: adv_ce is taken times 1 - w, adv_kl times w; auto: the accuracy of the "
        "untouched teacher on the training images; null: weights as they are, as where one of them is set",
    )
    clean_ce: float = Field(0.0, ge=0, description="weight of CE(z_S(x), y)")
    clean_kl: float = Field(0.0, ge=0, description="weight of KL(p_T(x) || p_S(x))")
    image_features: float = Field(0.0, ge=0, description="weight of 1 - cos(f_S(x'), f_T(x))")
    text_features: float = Field(0.0, ge=0, description="weight of 1 - cos(t_S, t_T)")
    feedback: float = Field(0.0, ge=0, description="online teacher: weight of KL(p_T(x) || p_S(x')); 0: no feedback")
    tau: float = Field(1.0, gt=0, description="temperature of the soft labels")
    inner: Literal["ce", "kl", "teacher-kl", "teacher-pair", "mixed"] = Field(
        "ce",
        description="inner objective: CE, KL to the clean student, KL to the teacher on x, KL to the teacher on x', "
        "KL to the mixture of the hard label and the teacher's on x, weighted as in the loss (mixed, variant apd's)",
    )
    soft_target: Literal["clean", "adversarial"] = Field(
        "clean", description="image on which the teacher gives the soft label for x'"
    )
    trust: float = Field(0.0, ge=0, description="IAD: exponent of the teacher's probability of y on x'; 0: full trust")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = VARIANTS.get(str(values.get("variant", "apd")), {})
        if "adv_ce" in values or "adv_kl" in values:
            preset = {name: value for name, value in preset.items() if name != "balance"}
        return {**preset, **values}

    @model_validator(mode="after")
    def _consistent(self) -> APDSettings:
        if self.variant == "mtard" and self.robust_teacher is None:
            raise ValueError("variant mtard needs method.robust_teacher, an adversarially trained CLIP")
        labels = [bool(self.adv_ce), bool(self.adv_kl)]
        if self.inner == "mixed" and not (any(labels) if self.balance is None else all(labels)):
            raise ValueError(
                "method.inner=mixed needs a label on x': set method.adv_ce or method.adv_kl above 0 (both, with a balance), or "
                "method.inner=ce"
            )
        if self.feedback and self.teacher != "online":
            raise ValueError(f"method.feedback needs method.teacher=online, got {self.teacher}")
        if self.robust_teacher is not None and not self._asks_on_adversarial:
            raise ValueError(
                "method.robust_teacher answers on x', which nothing asks for here; set method.soft_target=adversarial "
                "or leave it out"
            )
        if (self.teacher != "frozen" or self.teacher_model is not None) and not self._asks_teacher:
            name = "teacher_model" if self.teacher_model is not None else f"teacher={self.teacher}"
            raise ValueError(
                f"method.{name} teaches nothing: no term asks it; give method.adv_kl a weight, or leave it out"
            )
        return self

    @property
    def _soft(self) -> bool:
        """Whether the soft label for x' has a weight."""
        return bool(self.adv_kl) and self.balance != 0

    @property
    def _asks_on_adversarial(self) -> bool:
        """Whether a teacher answers on x'."""
        wanted = self.soft_target == "adversarial" or bool(self.trust)
        return self.inner == "teacher-pair" or (self._soft and wanted)

    @property
    def _asks_teacher(self) -> bool:
        """Whether the teacher that is not the robust one answers anything."""
        on_clean = self._soft and (self.soft_target == "clean" or self.inner == "mixed")
        terms = self.clean_kl or self.image_features or self.text_features
        return bool(
            on_clean
            or self.inner == "teacher-kl"
            or terms
            or (self._asks_on_adversarial and self.robust_teacher is None)
        )

    def flat_at_clean(self, kind: AttackKind) -> bool:
        return kind == "pgd" and self.inner == "kl"

    def check_training(self, train: TrainSettings) -> None:
        super().check_training(train)
        if train.label_smoothing and not (self.adv_ce or self.clean_ce or self.teacher == "online"):
            raise ValueError(
                "train.label_smoothing is of cross-entropy terms, of which there is none here; set it to 0 or method.clean_ce"
            )
        if self.inner == "ce":
            return
        if train.attack.kind in ("free", "carried") and self.inner != "mixed":
            raise ValueError(
                f"method.inner={self.inner} has no effect with train.attack.kind={train.attack.kind}, whose pixels climb the "
                "loss itself; leave it out or set another kind"
            )
        if train.attack.stop_margin is not None and (self.inner != "mixed" or train.attack.loss == "method"):
            raise ValueError(
                f"train.attack.stop_margin needs an attack on labels, which method.inner={self.inner} is not; set it to null, "
                "or method.inner=ce"
            )


class APD(Method):
    """Adversarial Prompt Distillation with a frozen, a clean-tuned or an online teacher."""

    summary: ClassVar[str] = "adversarial tuning of visual and text tokens, taught by a clean CLIP"
    source: ClassVar[str] = "Adversarial Prompt Distillation (arXiv 2411.15244), reconstructed"
    Settings: ClassVar[type[MethodSettings]] = APDSettings

    def __init__(self, settings: APDSettings, student: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, student, seed)
        self.s = settings
        self.untouched = base = self._other(student, settings.teacher_model)
        # A seed of its own: a teacher that starts as the student's copy would teach it nothing at first.
        self.teacher = base if settings.teacher == "frozen" else prompted(base, settings.prompts, seed + 1)
        self.teacher.requires_grad_(settings.teacher == "online")
        self.teacher.encoder.requires_grad_(False)
        self.robust = self._other(student, settings.robust_teacher) if settings.robust_teacher else None
        # Even until `prepare` has measured it.
        share = 0.5 if settings.balance == "auto" else settings.balance
        self.balance: Tensor
        self.register_buffer("balance", torch.tensor(0.5 if share is None else share))
        self._bound: dict[str, BoundCLIP] = {}
        widths = self.teacher.encoder.info.embed_dim, student.encoder.info.embed_dim
        for name in ("image_features", "text_features"):
            if getattr(settings, name) and widths[0] != widths[1]:
                raise InputError(
                    f"method.{name} needs teacher and student of equal embedding width, got {widths[0]} and {widths[1]}; "
                    "set it to 0."
                )

    @staticmethod
    def _other(student: PromptedCLIP, source: str | None) -> PromptedCLIP:
        if source is None:
            return student.undefended()
        other = PromptedCLIP(
            shared_clip(source, device=student.encoder.device), None, student.class_names, student.templates
        )
        if other.encoder.info.image_size != student.encoder.info.image_size:
            raise InputError(
                f"Teacher {source} takes {other.encoder.info.image_size} px, the student {student.encoder.info.image_size} px; "
                "teacher and student must see the same image."
            )
        return other

    def prepare(self, before: Preparation) -> None:
        """Measure what the untouched teacher knows, and tune its prompts on clean images, where it is ``tuned``."""
        if self.s.balance == "auto":
            self.balance.fill_(self._accuracy(before.images))
        if self.s.teacher != "tuned":
            return
        clean = VLP(MethodSettings(prompts=self.s.prompts), self.teacher)
        assert clean.student.prompts is not None and self.teacher.prompts is not None
        clean.student.prompts.load_state_dict(self.teacher.prompts.state_dict())
        before.tune(clean)
        self.teacher.prompts.load_state_dict(clean.student.prompts.state_dict())

    def facts(self) -> dict[str, Any]:
        """The share of the soft label that was used, where there is one: measured or set."""
        return {} if self.s.balance is None else {"balance": round(self.balance.item(), 6)}

    def _accuracy(self, images: Decoded) -> Tensor:
        """Share of the training images that the untouched teacher, which has not seen them, classifies right."""
        known = self._fixed("untouched", self.untouched)
        right = torch.zeros((), device=images.images.device)
        with torch.no_grad():
            for index in torch.split(torch.arange(len(images), device=images.images.device), _BATCH):
                right += (known.logits(images.pixels(index)).argmax(dim=-1) == images.labels[index]).sum()
        return right / len(images)

    def _fixed(self, name: str, classifier: PromptedCLIP) -> BoundCLIP:
        """A fixed teacher's class features, computed once a run."""
        if name not in self._bound:
            self._bound[name] = classifier.frozen().bound
        return self._bound[name]

    def _teacher(self, step: Step) -> BoundCLIP:
        if self.s.teacher == "online":
            return cast(BoundCLIP, step.once("teacher", self.teacher.bind))
        return self._fixed("teacher", self.teacher)

    def _teacher_features(self, step: Step) -> Tensor:
        if self.s.teacher == "online":
            return cast(Tensor, step.once("teacher features", lambda: self._teacher(step).features(step.x)))
        with torch.no_grad():
            return cast(Tensor, step.lastingly("teacher features", lambda: self._teacher(step).features(step.x)))

    def _teacher_logits(self, step: Step) -> Tensor:
        return self._teacher(step).compare(self._teacher_features(step))

    def _on_adversarial(self, step: Step) -> BoundCLIP:
        return self._teacher(step).detach() if self.robust is None else self._fixed("robust", self.robust)

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """The inner maximisation chosen by ``inner``."""
        if self.s.inner == "ce":
            return Objective(attacked.logits, cross_entropy, step.labels)
        if self.s.inner == "kl":
            return Objective(attacked.logits, kl_from_logits, step.clean_logits().detach())
        if self.s.inner == "teacher-kl":
            return Objective(attacked.logits, kl_from_logits, self._teacher_logits(step).detach())
        if self.s.inner == "mixed":
            return Objective(attacked.logits, kl, self._mixed_label(step))
        teacher = self._on_adversarial(step)
        return Objective(lambda x: torch.cat([teacher.logits(x), attacked.logits(x)], dim=1), kl_of_pair, step.labels)

    def _weights(self) -> tuple[Tensor | float, Tensor | float]:
        """Of the hard and of the soft label on x'."""
        hard, soft = (1.0, 1.0) if self.s.balance is None else (1 - self.balance, self.balance)
        return hard * self.s.adv_ce, soft * self.s.adv_kl

    def _mixed_label(self, step: Step) -> Tensor:
        """The probabilities (B, C) towards which the loss draws p_S(x'); exactly so for ``tau = 1`` and soft labels on x."""
        hard, soft = self._weights()
        known = (self._teacher_logits(step).detach() / self.s.tau).softmax(dim=-1)
        return (hard * F.one_hot(step.labels, known.shape[-1]) + soft * known) / (hard + soft)

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """The terms of L_S (and of L_T, where the teacher is online) whose weight is not 0."""
        s = self.s
        features = step.student.features(x_adv)
        z_adv = step.student.compare(features)
        hard, soft = self._weights()
        terms: dict[str, Tensor] = {}
        if s.adv_ce:
            terms["adv_ce"] = hard * step.cross_entropy(z_adv)
        if s.adv_kl:
            terms["adv_kl"] = soft * self._soft(step, x_adv, z_adv)
        if s.clean_ce:
            terms["clean_ce"] = s.clean_ce * step.cross_entropy(step.clean_logits())
        if s.clean_kl:
            terms["clean_kl"] = s.clean_kl * losses.distillation(
                self._teacher_logits(step).detach(), step.clean_logits(), s.tau
            )
        if s.image_features:
            terms["image_features"] = s.image_features * losses.cosine_distance(
                features, self._teacher_features(step).detach()
            )
        if s.text_features:
            classes = self._teacher(step).classes.detach()
            terms["text_features"] = s.text_features * losses.cosine_distance(step.student.classes, classes)
        if s.teacher == "online":
            z_teacher = self._teacher_logits(step)
            terms["teacher_ce"] = step.cross_entropy(z_teacher)
            if s.feedback:
                terms["feedback"] = s.feedback * losses.kl_per_sample(z_teacher, z_adv.detach(), s.tau).mean()
        return terms

    def _soft(self, step: Step, x_adv: Tensor, z_adv: Tensor) -> Tensor:
        """``KL(p_T || p_S(x'))`` with the teacher's soft label on x or x', trusted or not."""
        adversarial = None
        if self.s.soft_target == "adversarial" or self.s.trust:
            # Bound outside of no_grad: an online teacher is bound once a step, and needs its graph for its own loss.
            teacher = self._on_adversarial(step)
            with torch.no_grad():
                adversarial = teacher.logits(x_adv)
        target = adversarial if self.s.soft_target == "adversarial" else self._teacher_logits(step).detach()
        assert target is not None
        if not self.s.trust:
            return losses.distillation(target, z_adv, self.s.tau)
        assert adversarial is not None
        right = adversarial.softmax(dim=-1).gather(1, step.labels[:, None]).squeeze(1)
        return losses.introspection(target, z_adv, step.clean_logits().detach(), right**self.s.trust, self.s.tau)
