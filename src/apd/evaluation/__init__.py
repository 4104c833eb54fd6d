"""Evaluation: accuracy under attack, with intervals, kept outcomes and health checks that can fail it."""

from apd.evaluation.calibrate import calibrate_run
from apd.evaluation.curve import Curve, measure_curve
from apd.evaluation.images import read_image
from apd.evaluation.kept import evaluate_classifier, evaluate_zero_shot
from apd.evaluation.measure import evaluate, evaluate_tensors, parse_settings
from apd.evaluation.result import Accuracy, AttackAccuracy, Check, ClassScores, Result, Scores
from apd.evaluation.run_folder import evaluate_run
from apd.evaluation.settings import EvaluationSettings

__all__ = [
    "Accuracy",
    "AttackAccuracy",
    "Check",
    "ClassScores",
    "Curve",
    "EvaluationSettings",
    "Result",
    "Scores",
    "calibrate_run",
    "evaluate",
    "evaluate_classifier",
    "evaluate_run",
    "evaluate_tensors",
    "evaluate_zero_shot",
    "measure_curve",
    "parse_settings",
    "read_image",
]
