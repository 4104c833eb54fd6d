"""Attacks: within a threat model, find images that a classifier gets wrong.

Training attacks are called as `Attack`; `TRAINING_ATTACKS` names them. Evaluation attacks get the whole classifier and only
samples that it gets right; `find` returns them by name, `EVALUATION` lists them.
"""

from apd.attacks.autoattack import LibraryAttack
from apd.attacks.base import Attack, TrainingAttack
from apd.attacks.evaluation import UNWATCHED, AttackBatch, Cascade, ClimbingAttack, EvaluationAttack, Found, Watch
from apd.attacks.fgsm import FGSMRS, NFGSM
from apd.attacks.named import EVALUATION, EVALUATION_ATTACKS, code_of, find, name_of
from apd.attacks.noise import Noise
from apd.attacks.objectives import (
    LOSSES,
    Loss,
    Objective,
    cosine_distance,
    cross_entropy,
    dlr,
    kl,
    kl_of_pair,
    kl_to_logits,
    kl_to_probabilities,
    margin,
    misclassified,
    squared_distance,
)
from apd.attacks.persistent import Carried, Replayed
from apd.attacks.pgd import PGD, beyond_margin
from apd.attacks.settings import AttackSettings
from apd.attacks.threat import ThreatModel
from apd.attacks.training import TRAINING_ATTACKS
from apd.util.seeds import sample_seeds

__all__ = [
    "EVALUATION",
    "EVALUATION_ATTACKS",
    "FGSMRS",
    "LOSSES",
    "NFGSM",
    "PGD",
    "TRAINING_ATTACKS",
    "UNWATCHED",
    "Attack",
    "AttackBatch",
    "AttackSettings",
    "Carried",
    "Cascade",
    "ClimbingAttack",
    "EvaluationAttack",
    "Found",
    "LibraryAttack",
    "Loss",
    "Noise",
    "Objective",
    "Replayed",
    "ThreatModel",
    "TrainingAttack",
    "Watch",
    "beyond_margin",
    "code_of",
    "cosine_distance",
    "cross_entropy",
    "dlr",
    "find",
    "kl",
    "kl_of_pair",
    "kl_to_logits",
    "kl_to_probabilities",
    "margin",
    "misclassified",
    "name_of",
    "sample_seeds",
    "squared_distance",
]
