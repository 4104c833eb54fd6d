"""Health checks: signs that a robust accuracy is not to be trusted.

After Athalye 2018 (Obfuscated Gradients), Carlini 2019 (On Evaluating Adversarial Robustness) and Pintor 2022
(Indicators of Attack Failure). They run on the first `CHECKED` samples; each can fail a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apd.attacks import PGD, Objective, cross_entropy, margin, misclassified, sample_seeds
from apd.attacks.autoattack import BLACK_BOX as BLACK_BOX_PART
from apd.attacks.threat import ThreatModel
from apd.evaluation.frozen import Subject
from apd.evaluation.gradients import has_gradient, no_gradient, recording, true_gradients
from apd.evaluation.result import AttackAccuracy, Check, Scores
from apd.evaluation.surface import flat_spots, jumps, shifted_images
from apd.models.classifier import COINCIDE, FrozenClassifier, closest_classes

CHECKED = 64
"""Samples the checks look at, in one batch; fewer where ``batch_size`` is smaller."""

REVISION = "6"
"""Raised with every change of the checks, so that kept older ones are not taken for today's."""

CHECK_PASSES = 230
"""Passes of the model per checked image, at most about: 100 of them in the attack on what still stands, 40 on its copies."""

LOGIT_TOLERANCE = 1e-4
"""How far logits may move with the batch size, as a share of the largest logit."""

FEW = 0.05
"""Share of samples that counts as few."""

BLACK_BOX = 0.002
"""Share of samples that Square may find beyond the gradient attacks (AutoAttack's own limit)."""

COLLAPSED = 20.0
"""Points of clean accuracy below zero-shot CLIP that count as a collapse."""

FLAG_MEANING = {
    "randomized": "the classifier answers the same image differently; average its gradients over its randomness",
    "probabilities": "the classifier gives probabilities instead of logits, whose gradients vanish",
    "dynamic": "the classifier optimises while it answers; it needs an adaptive attack",
    "zero gradient": "samples without a gradient",
}


@dataclass(frozen=True)
class Checked:
    """Samples that are checked, and what is known of them.

    Args:
        x, labels: images (n,3,H,W) in [0,1] and labels (n,).
        seeds: (n,) of the checks' own random starts.
        clean: predicted classes (n,) without an attack.
        standing: which samples (n,) are right under every attack that ran.
        attacked: whether any attack ran.
    """

    x: Tensor
    labels: Tensor
    seeds: Tensor
    clean: Tensor
    standing: Tensor
    attacked: bool


def model_checks(subject: Subject, checked: Checked, threat: ThreatModel) -> list[Check]:
    """All checks that ask the model; it must be `Subject.fixed`."""
    x, labels = checked.x, checked.labels
    why_not = no_gradient(subject, x, labels)
    found = [*_class_features(subject), has_gradient(why_not)]
    found += [_no_budget(subject, checked, threat, why_not is None), _batch_size(subject, checked)]
    found += [_logit_range(subject, checked)]
    if why_not is None:
        found += [recording(subject, x), _zero_gradients(subject, checked)]
        found += [true_gradients(subject, x, labels, checked.seeds, threat), _huge_budget(subject, checked, threat)]
    if len(x) > 1:
        found += [jumps(subject, x), flat_spots(subject, x, checked.seeds, threat)]
    if checked.attacked and threat.eps > 0:
        found += [_noise(subject, checked, threat)]
        found += _attacked_again(subject, checked, threat) if why_not is None else []
    return found


def seeds_of(ids: list[str], seed: int) -> Tensor:
    """Seeds of the checks' own random starts, other than the attacks'."""
    return sample_seeds(ids, seed, "checks")


def _class_features(subject: Subject) -> list[Check]:
    """Two classes whose text features coincide cannot be told apart; only a CLIP classifier has such features."""
    if not isinstance(subject.model, FrozenClassifier):
        return []
    cosine, one, other = closest_classes(subject.model.bound.classes.float())
    names = subject.class_names
    pair = f"{names[one]!r} and {names[other]!r}" if names else f"{one} and {other}"
    return [
        Check(
            name="class features",
            passed=cosine <= 1 - COINCIDE,
            value=cosine,
            message=f"the features of the classes {pair} have cosine {cosine:.6f}; above {1 - COINCIDE:g} they coincide: check "
            "the tokenizer and the class names",
        )
    ]


def _no_budget(subject: Subject, checked: Checked, threat: ThreatModel, climbs: bool) -> Check:
    """An attack with eps 0, or asking again where no attack ``climbs``, must leave every prediction as it is."""
    objective = Objective(subject.model, cross_entropy, checked.labels)
    none = ThreatModel(0.0, threat.norm)
    images = PGD(steps=2)(objective, checked.x, none, checked.seeds) if climbs else checked.x
    changed = int((subject.predict(images) != checked.clean).sum())
    passed = changed == 0 and torch.equal(images, checked.x)
    return Check(
        name="eps 0",
        passed=passed,
        value=changed,
        message=f"an attack with eps 0 changes {changed} of {len(images)} predictions",
    )


def _batch_size(subject: Subject, checked: Checked) -> Check:
    """Logits of an image must not depend on its neighbours, nor on chance."""
    x = checked.x[:8]
    together, alone = subject.logits(checked.x)[:8], torch.cat([subject.logits(image[None]) for image in x])
    largest = max(1.0, float(together.abs().max()))
    moved = float((together - alone).abs().max()) / largest
    return Check(
        name="batch size",
        passed=moved <= LOGIT_TOLERANCE,
        value=moved,
        message=f"logits move by {moved:.1e} of the largest between a batch and one image at a time",
    )


def _logit_range(subject: Subject, checked: Checked) -> Check:
    """Logits must differ by numbers that float32 holds with all its digits, and whose squares it holds, too.

    Smaller ones are rounded, and zero on a device that flushes them; gradients of larger ones overflow.
    """
    logits = subject.logits(checked.x).float()
    spread, float32 = logits.amax(dim=1) - logits.amin(dim=1), torch.finfo(torch.float32)
    # Written so that a value that is not a number is outside.
    share = float((~((spread >= float32.tiny) & (spread <= math.sqrt(float32.max)))).float().mean())
    return Check(
        name="logit range",
        passed=share <= FEW,
        value=share,
        message=f"on {share:.1%} of images the largest and the smallest logit differ by less than {float32.tiny:.0e} or more "
        f"than {math.sqrt(float32.max):.0e}; above {FEW:.0%} answers and gradients depend on how a device rounds",
    )


def _zero_gradients(subject: Subject, checked: Checked) -> Check:
    """Samples whose cross-entropy has no gradient at all cannot be attacked along it."""
    x = checked.x.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(cross_entropy(subject.model(x), checked.labels).sum(), x)
    share = float((gradient.flatten(1) == 0).all(dim=1).float().mean())
    return Check(
        name="zero gradients",
        passed=share <= FEW,
        value=share,
        message=f"{share:.1%} of images give the cross-entropy no gradient; "
        f"above {FEW:.0%} only margin and black-box attacks count",
    )


def _huge_budget(subject: Subject, checked: Checked, threat: ThreatModel) -> Check:
    """With half of all pixel values allowed, any image can become any other: nothing may stand."""
    huge = threat.half_range(checked.x[0].numel())
    standing = _after(PGD(steps=20, step_size=0.1), subject, checked, huge) & (checked.clean == checked.labels)
    share = float(standing.float().mean())
    return Check(
        name="huge eps",
        passed=share <= FEW,
        value=share,
        message=f"{share:.1%} of images stand under PGD-20 with half of all pixel values allowed; "
        f"above {FEW:.0%} gradients mislead",
    )


def _noise(subject: Subject, checked: Checked, threat: ThreatModel) -> Check:
    """Random noise in the ball may neither fool more images than the attacks nor many that they did not."""
    wrong = misclassified(subject.logits(threat.random_start(checked.x, checked.seeds)), checked.labels)
    missed = int((wrong & checked.standing).sum())
    return Check(
        name="random noise",
        passed=int(wrong.sum()) <= int((~checked.standing).sum()) and missed <= FEW * len(wrong),
        value=missed,
        message=f"under noise in place of an attack {int(wrong.sum())} of {len(wrong)} images are wrong, {missed} of which stood "
        "under every attack",
    )


def _attacked_again(subject: Subject, checked: Checked, threat: ThreatModel) -> list[Check]:
    """Another objective, other starts and 50 steps on what still stands should find little more; then moved copies of it."""
    index, standing = checked.standing.nonzero().squeeze(1), checked.standing
    if len(index):
        part = replace(checked, x=checked.x[index], labels=checked.labels[index], seeds=checked.seeds[index.cpu()])
        stands = _after(PGD(steps=50, step_size=0.1), subject, part, threat)
        standing = standing.index_put((index,), stands)
    again = _stronger(int(checked.standing.sum() - standing.sum()) / len(checked.x))
    return [again, shifted_images(subject, checked.x, checked.labels, checked.seeds, standing, threat)]


def _stronger(share: float) -> Check:
    return Check(
        name="stronger attack",
        passed=share <= FEW,
        value=share,
        message=f"PGD-50 on the margin fools {share:.1%} more of all images; "
        f"above {FEW:.0%} the attacks that ran were too weak, or had one aim only: leave --attack away, or use --strong",
    )


def _after(attack: PGD, subject: Subject, checked: Checked, threat: ThreatModel) -> Tensor:
    """Which samples stand under PGD on the margin, which saturates nowhere."""
    objective = Objective(subject.model, margin, checked.labels)
    images = replace(attack, leave=misclassified)(objective, checked.x, threat, checked.seeds)
    return ~misclassified(subject.logits(images), checked.labels)


def library_checks(attacks: dict[str, AttackAccuracy], n: int) -> list[Check]:
    """What AutoAttack says of itself: its flags, and whether black-box found what white-box missed."""
    found: list[Check] = []
    for name, score in attacks.items():
        for flag, times in score.flags.items():
            # One sample without a gradient raises that flag; the share of them is a check of its own.
            passed = None if flag == "zero gradient" else False
            message = f"the attack library warns ({times} times): {FLAG_MEANING.get(flag, flag)}"
            found.append(Check(name=f"{name}: {flag}", passed=passed, value=times, message=message))
        if BLACK_BOX_PART in score.runs and len(score.runs) > 1:
            share = score.fooled_by.get(BLACK_BOX_PART, 0) / n
            found.append(
                Check(
                    name=f"{name}: black-box",
                    passed=share <= BLACK_BOX,
                    value=share,
                    message=f"Square fools {share:.1%} that the gradient attacks missed; "
                    f"above {BLACK_BOX:.1%} gradients are masked",
                )
            )
    return found


_LOST_IN_TRAINING = (
    "training has lost what the model knew (learning rate too high, labels mixed up, or images mirrored that must not be, "
    "such as digits: train.augment.flip=false)"
)
_NEVER_KNOWN = (
    "the model does not know these images, its outputs are in another order than the class names, or it takes other images "
    "than pixels in [0,1] of this size"
)


def collapse(own: Scores, control: Scores, *, foreign: bool = False) -> Check:
    """A warning where the model knows far fewer images than zero-shot CLIP does, without any attack.

    Args:
        own: the model's accuracies.
        control: those of zero-shot CLIP.
        foreign: the model is a module of other code, which was not trained here.
    """
    lost = control.clean - own.clean
    passed = not (own.clean_interval[1] < control.clean_interval[0] and lost > COLLAPSED)
    both = f"{control.clean:.1f} % of zero-shot CLIP on the same images"
    if passed:
        message = f"clean accuracy {own.clean:.1f} %, beside {both}"
    else:
        why = _NEVER_KNOWN if foreign else _LOST_IN_TRAINING
        message = f"clean accuracy {own.clean:.1f} % is far below the {both}: {why}"
    return Check(name="collapse", passed=passed, value=round(lost, 2), message=message, warns=True)


def black_box_says(check: Check, skipped: Sequence[str], scores: Scores) -> Check:
    """Add to the check ``gradient`` what that means for the attacks that were asked for, and what is known instead."""
    if check.name != "gradient" or check.passed or not scores.attacks:
        return check
    named = ", ".join(f"{name} {score.accuracy:.2f} %" for name, score in scores.attacks.items())
    left_out = f"white-box attacks ({', '.join(skipped)}) do not apply; black-box says" if skipped else "without one"
    message = f"{check.message}: {left_out} {named}"
    return check.model_copy(update={"message": message})
