"""`evaluate`: from a classifier and data to a `Result`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from apd.attacks import sample_seeds
from apd.attacks.threat import format_eps
from apd.data.corruptions import corrupt, parse_corruption
from apd.data.dataset import IN_MEMORY, Dataset, Decoded, ImageSet
from apd.errors import InputError, nearest
from apd.evaluation.checks import CHECKED, REVISION, Checked, library_checks, model_checks, seeds_of
from apd.evaluation.engine import PRECISION, Evaluation
from apd.evaluation.forecast import LARGEST
from apd.evaluation.frozen import Subject
from apd.evaluation.result import Check, ClassScores, Result, Scores
from apd.evaluation.sample import choose_sample
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.store import Record, Store
from apd.models.classifier import PromptedCLIP
from apd.models.preprocessing import Preprocessing
from apd.settings.explain import explain, setting_names
from apd.util.messages import get_logger, speaking
from apd.util.seeds import shuffled
from apd.util.versions import versions

log = get_logger("apd.evaluation")

ON = ("", " on zero-shot CLIP")
"""What stands after an attack's name while it runs, for the model and for the control."""


def evaluate(
    classifier: nn.Module,
    data: Dataset,
    *,
    store: Path | None = None,
    undefended: PromptedCLIP | None = None,
    image_size: int | None = None,
    **settings: Any,
) -> Result:
    """Accuracy of the whole classifier, prompts included, clean and under white-box attack, in float32.

    Args:
        classifier: for the classes of ``data`` (or those of ``data.classes(...)``), in their order: a `PromptedCLIP`, or
            any module from pixels (B,3,S,S) in [0,1] to logits (B,C), which has no zero-shot control.
        data: its ``split`` is evaluated.
        store: folder for the outcomes of single samples; another call computes only what is not there yet.
        undefended: the control, attacked in the same run; None: the same CLIP with its hand-written templates.
        image_size: for a module that is not a `PromptedCLIP`: the side S of the images it takes; None: that of the first
            image, if it is square and the data were made from tensors.
        settings: of `EvaluationSettings`, such as ``attacks=("pgd-20", "autoattack")`` and ``eps="4/255"``
            (in [0,1] pixel units).

    Raises:
        InputError: unknown settings or attacks, classes that differ, no images, an image that cannot be read.

    Example:
        >>> import apd
        >>> clip, data = apd.load_clip("glyphs"), apd.load_data("digits")
        >>> classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
        >>> result = apd.evaluate(classifier, data, attacks="pgd-5", eps="1/255", limit=16, checks=False)
        >>> result.worst.accuracy <= result.clean
        True
    """
    chosen = parse_settings(settings)
    with speaking(chosen.quiet):
        data = data.classes(chosen.classes)
        if isinstance(classifier, PromptedCLIP) and classifier.class_names != data.class_names:
            raise InputError(
                f"The classifier knows {_some(classifier.class_names)}, but {data.name} has {_some(data.class_names)}; "
                "use classifier.with_classes(data.class_names, data.templates), or other data."
            )
        images = data.split(chosen.split)
        if len(images) == 0:
            raise InputError(f"The {chosen.split} split of {data.name} has no images; choose another split.")

        preprocessing = _preprocessing(classifier, data, image_size)

        def decode(some: ImageSet) -> Decoded:
            return _decode(some, preprocessing, chosen)

        own = classifier.zero_shot() if isinstance(classifier, PromptedCLIP) else None
        control = (undefended or own) if chosen.control else None
        if chosen.control and control is None:
            log.info("No zero-shot control: the classifier is not a PromptedCLIP; give one as undefended.")
        subjects = _subjects(classifier, control)
        if not isinstance(classifier, PromptedCLIP):
            few = Samples(decode(images.sample(2, chosen.seed)))
            subjects[0].check_outputs(few.batch(range(len(few)), subjects[0].device)[0], len(data.class_names))
        kept = Store(store)
        sample, measured = choose_sample(images, decode, subjects, chosen, kept, len(data.class_names))
        log.info(sample.describe(chosen.split, chosen.adversarial))
        samples = Samples(decode(images.sample(sample.n, chosen.seed)))
        evaluations = [
            Evaluation(subject, samples, chosen, kept, len(data.class_names), on, pace)
            for subject, on, pace in zip(subjects, ON, measured, strict=False)
        ]
        found = []
        for evaluation in evaluations:
            found.append((evaluation, evaluation.run()))
        return _result(found, control is not None, data.class_names, data.name, len(images))


def _preprocessing(classifier: nn.Module, data: Dataset, image_size: int | None) -> Preprocessing:
    """How the classifier wants its images.

    Raises:
        InputError: nothing says how large they are.
    """
    if isinstance(classifier, PromptedCLIP):
        return classifier.encoder.info.preprocessing
    if image_size is None and data.source.startswith(IN_MEMORY):
        first = data.test.sources[0]
        sides = first().size if callable(first) else (0, 1)
        image_size = sides[0] if sides[0] == sides[1] else None
    if image_size is None:
        raise InputError(
            f"A {type(classifier).__name__} does not say how large its images are: give image_size, the side of a square in "
            "pixels; images are resized to it and not normalised."
        )
    return Preprocessing.plain(image_size)


def _decode(images: ImageSet, preprocessing: Preprocessing, settings: EvaluationSettings) -> Decoded:
    """Decode images as the classifier wants them, corrupted if that is asked for."""
    decoded = images.decode(preprocessing, skip_bad=settings.skip_bad_images, progress=True)
    if settings.corruption is None:
        return decoded
    seeds = sample_seeds(decoded.ids, settings.seed, "corruption")
    return replace(decoded, images=corrupt(decoded.images, *parse_corruption(settings.corruption), seeds))


def _subjects(model: nn.Module, control: nn.Module | None) -> list[Subject]:
    """The model, and the control where it is another model."""
    subject = Subject.of(model)
    other = subject if control is None else Subject.of(control)
    return [subject] if other.fingerprint == subject.fingerprint else [subject, other]


def evaluate_tensors(
    model: nn.Module,
    decoded: Decoded,
    class_names: Sequence[str],
    settings: EvaluationSettings,
    *,
    undefended: nn.Module | None = None,
    store: Path | None = None,
    name: str = "tensors",
) -> Result:
    """Evaluate any module from pixels (B,3,S,S) in [0,1] to logits (B,C), on images that are already decoded.

    Args:
        model: a `PromptedCLIP` or any module; set back to its mode afterwards.
        decoded: images (uint8, or float in [0,1]), labels and ids.
        class_names: C names, in the order of the logits.
        settings: attacks, eps and so on; the fields about choosing and corrupting images are only recorded.
        undefended: the control, attacked in the same run; None for none.
        store: folder for the outcomes of single samples.
        name: the data's name.

    Raises:
        InputError: no images, an id twice, weights that are not float32, a record that cannot be read or written.
    """
    if len(decoded) == 0:
        raise InputError(f"{name} has no images to evaluate on.")
    if repeated := [id_ for id_, n in Counter(decoded.ids).items() if n > 1]:
        raise InputError(f"{name} has more than one image with the id {repeated[0]!r}; ids must differ.")
    samples, kept = Samples(decoded), Store(store)
    evaluations = [
        Evaluation(subject, samples, settings, kept, len(class_names), on)
        for subject, on in zip(_subjects(model, undefended), ON, strict=False)
    ]
    found = []
    with speaking(settings.quiet):
        for evaluation in evaluations:
            found.append((evaluation, evaluation.run()))
    return _result(found, undefended is not None, class_names, name, len(decoded) + len(decoded.skipped))


def _result(
    found: Sequence[tuple[Evaluation, dict[str, Record]]],
    controlled: bool,
    class_names: Sequence[str],
    name: str,
    available: int,
) -> Result:
    """Put together what was found for the model, and for the control if that is another model."""
    (evaluation, records), *others = found
    decoded, settings = evaluation.samples.decoded, evaluation.settings
    scores = evaluation.scores(records)
    control = others[0][0].scores(others[0][1]) if others else scores if controlled else None
    predictions, labels = evaluation.predictions(records), decoded.labels.tolist()
    checks = _checks(evaluation, records, scores, control) if settings.checks else []
    return Result(
        **dict(scores),
        **_circumstances(settings),
        n=len(decoded),
        n_available=available,
        undefended=control,
        checks=checks,
        per_class=_per_class(labels, predictions, class_names),
        data=name,
        image_size=decoded.images.shape[-1],
        skipped_images=decoded.skipped,
        ids=decoded.ids,
        labels=tuple(labels),
        predictions={attack: tuple(guesses) for attack, guesses in predictions.items()},
    )


def parse_settings(
    values: Mapping[str, Any], function: str = "evaluate", others: Sequence[str] = ()
) -> EvaluationSettings:
    """Settings from keyword arguments.

    Args:
        values: the settings.
        function: the function's name, for messages.
        others: the function's other arguments, which a misspelt setting may have meant.

    Raises:
        InputError: one line for the first that is wrong.
    """
    known = EvaluationSettings.model_fields
    for name in values:
        if name not in known:
            raise InputError(f"{function}() has no setting {name!r}. {nearest(name, [*known, *others])}")
    try:
        return EvaluationSettings(**values)
    except ValidationError as error:
        raise InputError(explain(error, setting_names(EvaluationSettings))) from error


def _circumstances(settings: EvaluationSettings) -> dict[str, Any]:
    """What a result says of the evaluation, whatever the model and the images."""
    eps = settings.threat.eps
    return {
        "eps": eps,
        "eps_text": format_eps(eps),
        "norm": settings.norm,
        "seed": settings.seed,
        "versions": versions(),
        "split": settings.split,
        "classes": settings.classes,
        "corruption": settings.corruption,
        "precision": PRECISION,
        "batch_size": settings.batch_size or LARGEST,
        "limit": settings.limit,
    }


def _checks(evaluation: Evaluation, records: dict[str, Record], scores: Scores, control: Scores | None) -> list[Check]:
    """Health checks on some samples of all classes, kept in the store, and those that are read off the scores."""
    samples, settings, subject = evaluation.samples, evaluation.settings, evaluation.subject
    # Drawn, not the first ones: folders are sorted by class.
    drawn = shuffled(samples.decoded.ids, settings.seed, "checks")
    index = sorted(drawn[: min(CHECKED, settings.batch_size or CHECKED)])
    right = {name: torch.tensor(guesses) for name, guesses in evaluation.predictions(records).items()}
    labels = samples.decoded.labels
    standing = torch.stack([guesses == labels for guesses in right.values()]).all(dim=0)
    about = hashlib.sha256(repr([(samples.keys[i], bool(standing[i])) for i in index]).encode()).hexdigest()
    asked = {"samples": about, "attacked": str(bool(settings.adversarial)), "revision": REVISION}
    circumstances = evaluation.circumstances("checks") | asked
    found = evaluation.store.load(circumstances)
    if found is None:
        x, y, ids = samples.batch(index, subject.device)
        seeds = seeds_of(ids, settings.seed)
        clean, known = right["clean"][index].to(y), standing[index].to(y.device)
        checked = Checked(x, y, seeds, clean, known, bool(settings.adversarial))
        with subject.fixed():
            found = [check.model_dump() for check in model_checks(subject, checked, settings.threat)]
        evaluation.store.save(circumstances, found)
    checks = [Check(**check) for check in found] + library_checks(scores.attacks, len(samples))
    if control is not None and settings.adversarial:
        message = f"zero-shot CLIP keeps {control.worst.accuracy:.2f} % (near 0 at a sufficiently large eps)"
        checks.append(Check(name="undefended", passed=None, value=control.worst.accuracy, message=message))
    return checks


def _per_class(
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


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 5 else ''})"
