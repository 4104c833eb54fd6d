"""Settings of Adversarial Prompt Distillation: weights, teachers, variants, and which combinations make sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from apd.methods.base import Climbed, MethodSettings
from apd.methods.teachers import CHOSEN
from apd.settings.train import TEACHER, ChosenTeacher, TrainSettings
from apd.util.section import RECORDED

Teacher = Literal["frozen", "tuned", "online", "mean", ChosenTeacher]

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


def _soft_label_alone(values: Mapping[str, Any]) -> bool:
    """Whether the soft label on x is all that these settings ask of the teacher, which two teachers can give together."""
    other = any(
        values.get(name) for name in ("image_features", "image_features_l2", "block_states", "text_features", "trust")
    )
    adversarial = values.get("soft_target") == "adversarial" or values.get("inner") in ("teacher-pair", "features")
    asked = values.get("adv_kl", 1.0) and values.get("balance") != 0
    return bool(values.get("variant", "apd") == "apd" and asked and not other and not adversarial)


class APDSettings(MethodSettings):
    """Settings of APD; ``variant`` presets the ones that its source prescribes, and explicit values win over it."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = VARIANTS
    models: ClassVar[tuple[str, ...]] = ("teacher_model", "robust_teacher", "second_teacher")
    class_contexts: ClassVar[bool] = True
    unrecorded: ClassVar[dict[str, Any]] = {
        "image_features_l2": 0.0,
        "block_states": 0.0,
        "teacher_tau": None,
        "second_teacher": None,
    }

    variant: Literal["apd", "ard", "rslad", "iad", "adaad", "mtard"] = Field(
        "apd", description="preset of weights and inner objective"
    )
    teacher: Teacher = Field(
        TEACHER,
        description="frozen: the hand-written prompt; tuned: prompts tuned on clean images first; mean: of both; best: any of "
        "these two and a linear probe on the CLIP's features, or the mean of some, whichever soft labels fit the validation "
        "images best; auto: chosen so without a probe; probe: without tuned prompts (these give soft labels on x alone; where "
        "more is asked of the teacher, the default is frozen); online: along with the student",
    )
    teacher_model: str | None = Field(
        None,
        description="another CLIP as teacher (any model source), or a run folder whose prompts teach; null: the student's own",
    )
    robust_teacher: str | None = Field(None, description="mtard: an adversarially trained CLIP, the teacher on x'")
    second_teacher: str | None = Field(
        None,
        description="a clean CLIP of another architecture, or a run on one: the mean of its answer on x' and of the teacher's is "
        "the soft label for x'",
    )
    adv_ce: float = Field(0.0, ge=0, description="weight of CE(z_S(x'), y)")
    adv_kl: float = Field(1.0, ge=0, description="weight of KL(p_T || p_S(x'))")
    balance: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description="share w of the soft label: adv_ce is taken times 1 - w, adv_kl times w; auto: the teacher's accuracy "
        "(of teacher best, auto or probe on the validation images, else of zero-shot CLIP or teacher_model on the training "
        "images); null: the weights alone, also if one of them is set",
    )
    clean_ce: float = Field(0.0, ge=0, description="weight of CE(z_S(x), y)")
    clean_kl: float = Field(0.0, ge=0, description="weight of KL(p_T(x) || p_S(x))")
    image_features: float = Field(0.0, ge=0, description="weight of 1 - cos(f_S(x'), f_T(x))")
    image_features_l2: float = Field(
        0.0, ge=0, description="weight of ||f_S(x') - f_T(x)||^2 of features that are not of unit length"
    )
    block_states: float = Field(
        0.0,
        ge=0,
        description="weight of the mean over blocks of ||h_S(x') - h_T(x)||^2, the class token's states of unit length, times "
        "the teacher's probability of y on x (after AdvMask's LAFA)",
    )
    text_features: float = Field(0.0, ge=0, description="weight of 1 - cos(t_S, t_T)")
    feedback: float = Field(0.0, ge=0, description="online teacher: weight of KL(p_T(x) || p_S(x')); 0: no feedback")
    tau: float = Field(1.0, gt=0, description="temperature of the soft labels")
    teacher_tau: float | None = Field(
        None, gt=0, description="the teacher's temperature where it is another than the student's; null: tau"
    )
    inner: Literal["ce", "kl", "teacher-kl", "teacher-pair", "features", "mixed"] = Field(
        "ce",
        description="inner objective: CE, KL to the clean student, KL to the teacher on x, KL to the teacher on x', squared "
        "distance of features to the teacher's on x (features), KL to the mixture of the hard label and the teacher's on x, "
        "weighted as in the loss (mixed, variant apd's)",
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
        found = {**preset, **values}
        # The default only: a teacher that somebody names is refused there, and never another one in secret.
        return found if "teacher" in found or _soft_label_alone(found) else {**found, "teacher": "frozen"}

    @model_validator(mode="after")
    def _consistent(self) -> APDSettings:
        if self.variant == "mtard" and self.robust_teacher is None:
            raise ValueError("variant mtard needs method.robust_teacher, an adversarially trained CLIP")
        if self.teacher in ("mean", *CHOSEN) and not _soft_label_alone(self.model_dump()):
            raise ValueError(
                f"method.teacher={self.teacher} gives soft labels on clean images and nothing else; set it to frozen, tuned or "
                "online"
            )
        labels = [bool(self.adv_ce), bool(self.adv_kl)]
        if self.inner == "mixed" and not (any(labels) if self.balance is None else all(labels)):
            raise ValueError(
                "method.inner=mixed needs a label on x': set method.adv_ce or method.adv_kl above 0 (both, with a balance), or "
                "method.inner=ce"
            )
        if self.teacher_tau is not None and not (self.soft_label or self.clean_kl or self.feedback):
            raise ValueError(
                "method.teacher_tau is the temperature of the teacher's soft label, which no term asks for; leave it out"
            )
        if self.second_teacher is not None and not self.soft_label:
            raise ValueError(
                "method.second_teacher shares in the soft label for x', which has no weight here; give method.adv_kl one, or "
                "leave it out"
            )
        if self.feedback and self.teacher != "online":
            raise ValueError(f"method.feedback needs method.teacher=online, got {self.teacher}")
        if self.robust_teacher is not None and not self._asks_on_adversarial:
            raise ValueError(
                "method.robust_teacher has no effect: no term uses an answer on x'; set method.soft_target=adversarial, "
                "or leave it out"
            )
        if (self.teacher != "frozen" or self.teacher_model is not None) and not self._asks_teacher:
            name = "teacher_model" if self.teacher_model is not None else f"teacher={self.teacher}"
            raise ValueError(
                f"method.{name} has no effect: no term uses the teacher; set method.adv_kl above 0, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _soft_label_has_a_weight(self, info: ValidationInfo) -> APDSettings:
        preset = VARIANTS.get(self.variant, {})
        for name, usual in (("soft_target", "clean"), ("trust", 0)):
            value = getattr(self, name)
            if info.context != RECORDED and value not in (usual, preset.get(name)) and not self.soft_label:
                raise ValueError(
                    f"method.{name}={value} is about the soft label for x', which has no weight here; give method.adv_kl one, or "
                    "leave it out"
                )
        return self

    @property
    def soft_label(self) -> bool:
        """Whether the soft label for x' has a weight."""
        return bool(self.adv_kl) and self.balance != 0

    @property
    def _asks_on_adversarial(self) -> bool:
        """Whether a teacher answers on x'."""
        wanted = self.soft_target == "adversarial" or bool(self.trust)
        return self.inner == "teacher-pair" or (self.soft_label and wanted)

    @property
    def _asks_teacher(self) -> bool:
        """Whether the teacher that is not the robust one answers anything."""
        on_clean = self.soft_label and (self.soft_target == "clean" or self.inner == "mixed")
        return bool(
            on_clean
            or self.inner in ("teacher-kl", "features")
            or self._asks_more
            or (self._asks_on_adversarial and self.robust_teacher is None)
        )

    @property
    def _asks_more(self) -> bool:
        """Whether a term other than the soft label for x' asks the teacher."""
        terms = (self.clean_kl, self.image_features, self.image_features_l2, self.block_states, self.text_features)
        return any(terms)

    def check_without_labels(self) -> None:
        """Check that a teacher teaches which needs no labels; see `MethodSettings.check_without_labels`."""
        if self.teacher in ("tuned", "mean", "online"):
            raise ValueError(
                f"method.teacher={self.teacher} is tuned on labels, of which there are none with data.shots=0; set it to frozen"
            )
        if self.teacher == "probe":
            raise ValueError(
                "method.teacher=probe is fitted and chosen by labels, of which there are none with data.shots=0; set it to frozen"
            )
        if not (self.soft_label or self._asks_more):
            raise ValueError(
                "data.shots=0 leaves the teacher's answers alone to learn from, but no term asks for them; give method.adv_kl a "
                "weight"
            )

    @property
    def climbs(self) -> Climbed:
        """See `MethodSettings.climbs`."""
        return "labels" if self.inner == "ce" else "soft labels" if self.inner == "mixed" else "answers"

    def zero_gradient_at_clean(self, train: TrainSettings) -> bool:
        """Whether what the training attack climbs has no gradient at the clean image itself."""
        return not train.attack.attack_class.moves_with_prompts and self.inner == "kl"

    def check_training(self, train: TrainSettings) -> None:
        """Check that these settings of training fit the method; see `MethodSettings.check_training`."""
        super().check_training(train)
        adversarial = self.adv_ce and self.balance != 1
        if train.label_smoothing and not (adversarial or self.clean_ce or self.teacher == "online"):
            raise ValueError(
                "train.label_smoothing needs a cross-entropy term, which this loss lacks; set it to 0, or method.clean_ce above 0"
            )
        if self.inner == "ce":
            return
        if train.attack.attack_class.moves_with_prompts and self.inner != "mixed":
            raise ValueError(
                f"method.inner={self.inner} has no effect with train.attack.kind={train.attack.kind}, whose pixels climb the "
                "loss itself; leave it out or set another kind"
            )
