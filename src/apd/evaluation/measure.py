"""`evaluate`: from a classifier and data to a `Result`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, Unpack

from torch import nn

from apd.attacks import find, sample_seeds
from apd.data.corruptions import corrupt, parse_corruption
from apd.data.dataset import IN_MEMORY, Dataset, Decoded, ImageSet, check_dataset
from apd.errors import InputError
from apd.evaluation.checks import REVISION
from apd.evaluation.engine import Evaluation
from apd.evaluation.frozen import Subject, own_answers
from apd.evaluation.gradients import no_gradient
from apd.evaluation.inputs import check_data, part_of, read_settings
from apd.evaluation.options import EvaluationOptions
from apd.evaluation.result import Result
from apd.evaluation.sample import choose_sample
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings, refuse_teacher
from apd.evaluation.store import Store
from apd.evaluation.summary import Finished, summarise
from apd.evaluation.surroundings import surroundings_of
from apd.models.classifier import PromptedCLIP
from apd.models.encoder import DualEncoder
from apd.models.fingerprint import told
from apd.models.preprocessing import Preprocessing
from apd.util.files import AnyPath, user_path
from apd.util.integers import check_whole
from apd.util.memory import Room
from apd.util.messages import get_logger, speaking
from apd.util.text import short

log = get_logger("apd.evaluation")

PROBED = 8
"""Images on which a module that is not ours is asked for its gradient before it is attacked."""

ON = ("", " on zero-shot CLIP")
"""What stands after an attack's name while it runs, for the model and for the control."""


def evaluate(
    classifier: nn.Module,
    data: Dataset,
    *,
    store: AnyPath | None = None,
    undefended: PromptedCLIP | None = None,
    image_size: int | None = None,
    save_images: AnyPath | None = None,
    **settings: Unpack[EvaluationOptions],
) -> Result:
    """Accuracy of the whole classifier, prompts included, clean and under white-box attack, in float32.

    Args:
        classifier: for the classes of ``data`` (or those of ``data.classes(...)``), in their order: a `PromptedCLIP`, or
            any module from pixels (B,3,S,S) in [0,1] to logits (B,C), which has no zero-shot control.
        data: its ``split`` is evaluated.
        store: folder for the outcomes of single samples; another call computes only what is not there yet.
        undefended: the control, attacked in the same run; None: the same CLIP with its hand-written templates.
        image_size: for a module that is not a `PromptedCLIP`: the side S of the images it takes; None: its attribute
            ``image_size``, else that of the first image, if it is square and the data were made from tensors.
        save_images: folder for the adversarial images, with an index (see `apd.evaluation.images`); None: not kept.
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
    if isinstance(classifier, str | PathLike):
        raise InputError(
            f"classifier must be a torch module, got {short(classifier)}; to evaluate a run: apd.evaluate_run."
        )
    check_dataset(data)
    chosen = parse_settings(settings)
    refuse_teacher(chosen.attacks)
    with speaking(chosen.quiet):
        if chosen.adversarial and (doubt := chosen.threat.doubt()):
            log.warning(doubt)
        data = part_of(data, chosen.classes)
        chosen = chosen.model_copy(update={"classes": data.settings.classes})
        check_data(classifier, data, chosen.split, undefended)
        control = _control(classifier, undefended, chosen)
        own, *others = _evaluations(classifier, control, data, chosen, Store(store), image_size)
        own = replace(own, images=None if save_images is None else user_path(save_images), class_names=data.class_names)
        found = []
        for evaluation in (own, *others):
            found.append(Finished(evaluation, evaluation.run()))
        return summarise(found, control is not None, data.class_names, data.name, len(data.split(chosen.split)))


def _control(
    classifier: nn.Module, undefended: PromptedCLIP | None, settings: EvaluationSettings
) -> PromptedCLIP | None:
    """Return the model that is attacked beside the classifier, if there is one."""
    if not settings.control:
        return None
    own = classifier.zero_shot() if isinstance(classifier, PromptedCLIP) else None
    control = undefended or own
    if control is None:
        log.info(
            "No zero-shot control: for one, name a CLIP model with --model (Python: a PromptedCLIP as undefended=)."
        )
    return control


def _evaluations(
    classifier: nn.Module,
    control: PromptedCLIP | None,
    data: Dataset,
    settings: EvaluationSettings,
    store: Store,
    image_size: int | None,
) -> list[Evaluation]:
    """Choose the sample, and return what is to be done on it, for the model and for the control if that is another."""
    images, n_classes = data.split(settings.split), len(data.class_names)
    preprocessing = preprocessing_of(classifier, data, image_size)

    decode = partial(decoded_for, preprocessing=preprocessing, settings=settings)
    subjects = _subjects(classifier, control)
    skipped: tuple[str, ...] = ()
    if not _ours(classifier):
        few = Samples(decode(images.sample(PROBED, settings.seed)))
        if not isinstance(classifier, PromptedCLIP) or own_answers(classifier):
            subjects[0].check_outputs(few.batch(range(min(2, len(few))), subjects[0].device)[0], n_classes)
        settings, skipped = _applicable(subjects[0], few, settings, store)
    sample, measured = choose_sample(images, decode, subjects, settings, store, n_classes)
    log.info(sample.describe(settings.split, settings.adversarial))
    samples = Samples(decode(images.sample(sample.n, settings.seed)))
    zero_shot = control or (classifier.zero_shot() if isinstance(classifier, PromptedCLIP) else None)
    around = surroundings_of(zero_shot, data, decode, subjects[0].device, samples.decoded.images.shape[-1], settings)
    return [
        Evaluation(subject, samples, settings, store, n_classes, on, pace, surroundings=around, skipped=skipped)
        for subject, on, pace in zip(subjects, ON, measured, strict=False)
    ]


def _ours(classifier: nn.Module) -> bool:
    """Whether all of it is this package's code, which gives gradients."""
    plain = isinstance(classifier, PromptedCLIP) and not own_answers(classifier)
    return plain and type(classifier.encoder).__module__.startswith("apd.")


def _applicable(
    subject: Subject, samples: Samples, settings: EvaluationSettings, store: Store
) -> tuple[EvaluationSettings, tuple[str, ...]]:
    """Replace attacks that need a gradient by a black-box one where the model gives none.

    Returns:
        The settings, and the attacks that do not apply.
    """
    changing = any(find(name).limits(settings.threat).eps > 0 for name in settings.adversarial)
    if not settings.needs_gradient or not changing or len(samples) == 0:
        return settings, ()
    x, labels, _ = samples.batch(range(min(PROBED, len(samples))), subject.device)
    about = {"attack": "gradient", "model": subject.fingerprint, "images": told((x, labels)), "revision": REVISION}
    known = store.load(about)
    if known is None:
        room = Room()
        for attempt in room.attempts(len(x)):
            with attempt, subject.within(room) as model, model.fixed():
                known = {"why_not": no_gradient(model, x, labels)}
        store.save(about, known)
    why_not = known["why_not"]
    if why_not is None:
        return settings, ()
    chosen = settings.without_gradient()
    skipped = tuple(name for name in settings.adversarial if name not in chosen.attacks)
    log.warning(
        f"No gradient ({why_not}): white-box attacks ({', '.join(skipped)}) do not work; {', '.join(chosen.adversarial)} "
        "runs instead, and the result is not reliable."
    )
    return chosen, skipped


def preprocessing_of(classifier: nn.Module, data: Dataset, image_size: int | None) -> Preprocessing:
    """How the classifier wants its images.

    Raises:
        InputError: nothing says how large they are; a CLIP model alone, which has no classes.
    """
    if isinstance(classifier, DualEncoder):
        raise InputError(
            "A CLIP model alone is not a classifier; give apd.PromptedCLIP(clip, None, data.class_names, data.templates)."
        )
    if isinstance(classifier, PromptedCLIP):
        return classifier.encoder.info.preprocessing
    image_size = side_of(classifier, image_size)
    if image_size is None and data.source.startswith(IN_MEMORY):
        first = data.test.sources[0]
        sides = first().size if callable(first) else (0, 1)
        image_size = sides[0] if sides[0] == sides[1] else None
    if image_size is None:
        raise InputError(
            f"A {type(classifier).__name__} does not say how large its images are: give image_size (--image-size), the side of "
            "a square in pixels; images are resized to it and not normalised."
        )
    return Preprocessing.plain(image_size)


def side_of(classifier: nn.Module, given: int | None) -> int | None:
    """Return the side of the images that a module takes: as given, else its attribute ``image_size`` where it has one.

    Raises:
        InputError: not a whole number of pixels.
    """
    if given is not None:
        return check_whole(given, "image_size", ", the side of the images in pixels")
    own = getattr(classifier, "image_size", None)
    return own if isinstance(own, int) and not isinstance(own, bool) and own > 0 else None


def decoded_for(images: ImageSet, preprocessing: Preprocessing, settings: EvaluationSettings) -> Decoded:
    """Decode images as a classifier wants them, corrupted if the settings say so."""
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
    store: AnyPath | None = None,
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
    samples, kept, subjects = Samples(decoded), Store(store), _subjects(model, undefended)
    with speaking(settings.quiet):
        settings, skipped = _applicable(subjects[0], samples, settings, kept)
        evaluations = [
            Evaluation(subject, samples, settings, kept, len(class_names), on, skipped=skipped)
            for subject, on in zip(subjects, ON, strict=False)
        ]
        found = []
        for evaluation in evaluations:
            found.append(Finished(evaluation, evaluation.run()))
    return summarise(found, undefended is not None, class_names, name, len(decoded) + len(decoded.skipped))


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
    return read_settings(EvaluationSettings, values, function, others)
