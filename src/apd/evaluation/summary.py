"""From the outcomes of single samples to the `Result` of an evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from apd.attacks.threat import format_eps
from apd.evaluation.checks import (
    CHECKED,
    REVISION,
    Checked,
    black_box_says,
    collapse,
    library_checks,
    model_checks,
    seeds_of,
)
from apd.evaluation.engine import PRECISION, Evaluation
from apd.evaluation.forecast import LARGEST_BATCH
from apd.evaluation.result import Accuracy, AttackAccuracy, Check, ClassScores, Result, Scores
from apd.evaluation.store import Record
from apd.evaluation.stored import as_tuples
from apd.models.classifier import FrozenClassifier
from apd.util.memory import Room
from apd.util.seeds import shuffled
from apd.util.versions import versions


@dataclass(frozen=True, eq=False)
class Finished:
    """An evaluation of one model, and the outcomes it has computed.

    Args:
        evaluation: the model, the samples and the settings.
        records: what `Evaluation.run` returned.
    """

    evaluation: Evaluation
    records: dict[str, Record]

    @cached_property
    def predictions(self) -> dict[str, list[int]]:
        """Predicted class after each attack, one per sample; the clean one where it is wrong already."""
        clean = self.records["clean"].outcomes
        return {
            name: [record.outcomes.get(key, clean[key]).predicted for key in self.evaluation.samples.keys]
            for name, record in self.records.items()
        }

    @cached_property
    def scores(self) -> Scores:
        """Accuracies of these outcomes."""
        labels = [label for *_, label in self.evaluation.samples.keys]
        right = {
            name: [guess == label for guess, label in zip(guesses, labels, strict=True)]
            for name, guesses in self.predictions.items()
        }
        clean = Accuracy.of(right["clean"])
        attacks = {name: self._under(name, right[name]) for name in self.evaluation.named_attacks}
        worst = Accuracy.of([all(sample) for sample in zip(*right.values(), strict=True)])
        return Scores(clean=clean.accuracy, clean_interval=clean.interval, attacks=attacks, worst=worst)

    def _under(self, name: str, right: Sequence[bool]) -> AttackAccuracy:
        """Accuracy under one attack; ``right`` says of each sample whether it was classified rightly."""
        record, attack = self.records[name], self.evaluation.named_attacks[name]
        known = (record.outcomes.get(key) for key in self.evaluation.samples.keys)
        return AttackAccuracy.of(
            right,
            seconds=round(record.seconds, 1),
            seconds_earlier=round(record.earlier, 1),
            runs=attack.runs(self.evaluation.n_classes),
            fooled_by=dict(Counter(outcome.by for outcome in known if outcome is not None and outcome.by)),
            flags=dict(record.flags),
            batch_sizes=tuple(sorted(record.batch_sizes)),
        )


def summarise(
    found: Sequence[Finished], controlled: bool, class_names: Sequence[str], data: str, available: int
) -> Result:
    """Put together what was found.

    Args:
        found: for the model, and for the control if that is another model.
        controlled: whether there is a control; it may be the model itself.
        class_names: in the order of the logits.
        data: the data's name.
        available: images of the split.
    """
    own, *others = found
    decoded, settings, eps = own.evaluation.samples.decoded, own.evaluation.settings, own.evaluation.settings.threat.eps
    labels = decoded.labels.tolist()
    control = others[0].scores if others else own.scores if controlled else None
    return Result(
        **vars(own.scores),
        undefended=control,
        per_class=per_class(labels, own.predictions, class_names),
        checks=_checks(own, control) if settings.checks else [],
        # Of which classifier.
        classifier=own.evaluation.subject.fingerprint,
        # What was asked for.
        eps=eps,
        eps_text=format_eps(eps, settings.norm),
        norm=settings.norm,
        seed=settings.seed,
        split=settings.split,
        classes=settings.classes,
        corruption=settings.corruption,
        limit=settings.limit,
        batch_size=settings.batch_size or LARGEST_BATCH,
        # On which images.
        images_sha256=own.evaluation.samples.sha256,
        data=data,
        n_classes=len(class_names),
        image_size=decoded.images.shape[-1],
        n=len(decoded),
        n_available=available,
        skipped_images=decoded.skipped,
        ids=decoded.ids,
        labels=tuple(labels),
        predictions=as_tuples(own.predictions),
        pixels=tuple(pixels for _, pixels, _ in own.evaluation.samples.keys),
        class_names=tuple(class_names),
        undefended_predictions=as_tuples((others or found)[0].predictions) if controlled else None,
        is_control=controlled and not others,
        precision=PRECISION,
        versions=versions(),
    )


def _checks(own: Finished, control: Scores | None) -> list[Check]:
    """Health checks on some samples of all classes, kept in the store, and those that are read off the scores."""
    evaluation = own.evaluation
    samples, settings, subject = evaluation.samples, evaluation.settings, evaluation.subject
    # Drawn, not the first ones: folders are sorted by class.
    drawn = shuffled(samples.decoded.ids, settings.seed, "checks")
    index = sorted(drawn[:CHECKED])
    right = {name: torch.tensor(guesses) for name, guesses in own.predictions.items()}
    labels = samples.decoded.labels
    standing = torch.stack([guesses == labels for guesses in right.values()]).all(dim=0)
    about = hashlib.sha256(repr([(samples.keys[i], bool(standing[i])) for i in index]).encode()).hexdigest()
    # A patch may change its pixels at will, so that an attack within eps is not a stronger one.
    attacked = any(attack.limits(settings.threat) == settings.threat for attack in evaluation.named_attacks.values())
    asked = {"samples": about, "attacked": str(attacked), "revision": REVISION}
    circumstances = evaluation.circumstances("checks") | asked
    found = evaluation.store.load(circumstances)
    if found is None:
        x, y, ids = samples.batch(index, subject.device)
        seeds = seeds_of(ids, settings.seed)
        clean, known = right["clean"][index].to(y), standing[index].to(y.device)
        checked = Checked(x, y, seeds, clean, known, attacked)
        small = settings.batch_size is not None and settings.batch_size < len(index)
        room = Room(settings.batch_size) if small else evaluation.room
        for attempt in room.attempts(len(index)):
            with attempt, subject.within(room) as model, model.fixed():
                found = [check.model_dump() for check in model_checks(model, checked, settings.threat)]
        evaluation.store.save(circumstances, found)
    checks = [black_box_says(Check(**check), evaluation.skipped, own.scores) for check in found]
    checks += library_checks(own.scores.attacks, len(samples))
    if control is not None and control is not own.scores:
        foreign = not isinstance(subject.model, FrozenClassifier)
        checks.append(collapse(own.scores, control, foreign=foreign))
    if control is not None and settings.adversarial:
        message = f"zero-shot CLIP keeps {control.worst.accuracy:.2f} % (near 0 at a sufficiently large eps)"
        checks.append(Check(name="undefended", passed=None, value=control.worst.accuracy, message=message))
    return checks


def per_class(
    labels: list[int], predictions: dict[str, list[int]], class_names: Sequence[str]
) -> dict[str, ClassScores]:
    """Clean and worst-case accuracy of each class that has samples."""
    found = {}
    for label, name in enumerate(class_names):
        index = [i for i, other in enumerate(labels) if other == label]
        if index:
            clean = sum(predictions["clean"][i] == label for i in index)
            worst = sum(all(guesses[i] == label for guesses in predictions.values()) for i in index)
            found[name] = ClassScores(
                n=len(index), clean=round(100 * clean / len(index), 2), worst=round(100 * worst / len(index), 2)
            )
    return found
