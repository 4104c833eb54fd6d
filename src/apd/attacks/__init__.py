"""Attacks: within a threat model, find images that a classifier gets wrong.

Training attacks are called as `Attack`; `TRAINING_ATTACKS` names them. Evaluation attacks get the whole classifier and only
samples that it gets right; `find` returns them by name, `EVALUATION` lists them.
"""

from apd.attacks.autoattack import LibraryAttack
from apd.attacks.base import Attack, TrainingAttack
from apd.attacks.bpda import BPDA, Preprocessed, StraightThrough, bridged
from apd.attacks.evaluation import (
    UNWATCHED,
    AttackBatch,
    Cascade,
    ClimbingAttack,
    EvaluationAttack,
    Found,
    Restarted,
    Source,
    Surroundings,
    Watch,
)
from apd.attacks.fgsm import FGSMRS, NFGSM
from apd.attacks.minimal import FMN, CarliniWagner, MinimalNorm
from apd.attacks.named import EVALUATION, EVALUATION_ATTACKS, alike, code_of, find, name_of
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
from apd.attacks.patch import Patch
from apd.attacks.persistent import Carried, Replayed
from apd.attacks.pgd import PGD, beyond_margin
from apd.attacks.settings import AttackSettings
from apd.attacks.stochastic import Averaged, EoT
from apd.attacks.strong import Strong
from apd.attacks.targeted import MultiTargeted, Targeted
from apd.attacks.threat import ThreatModel
from apd.attacks.training import TRAINING_ATTACKS
from apd.attacks.transfer import Transfer
from apd.attacks.universal import Universal
from apd.util.seeds import sample_seeds

__all__ = [
    "BPDA",
    "EVALUATION",
    "EVALUATION_ATTACKS",
    "FGSMRS",
    "FMN",
    "LOSSES",
    "NFGSM",
    "PGD",
    "TRAINING_ATTACKS",
    "UNWATCHED",
    "Attack",
    "AttackBatch",
    "AttackSettings",
    "Averaged",
    "CarliniWagner",
    "Carried",
    "Cascade",
    "ClimbingAttack",
    "EoT",
    "EvaluationAttack",
    "Found",
    "LibraryAttack",
    "Loss",
    "MinimalNorm",
    "MultiTargeted",
    "Noise",
    "Objective",
    "Patch",
    "Preprocessed",
    "Replayed",
    "Restarted",
    "Source",
    "StraightThrough",
    "Strong",
    "Surroundings",
    "Targeted",
    "ThreatModel",
    "TrainingAttack",
    "Transfer",
    "Universal",
    "Watch",
    "alike",
    "beyond_margin",
    "bridged",
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
