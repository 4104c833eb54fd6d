"""`verify_run`: judge a run folder of a stranger, by its files and by attacking some of its images again."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial

from apd.attacks.libraries import largest_setting
from apd.data import Dataset
from apd.data.dataset import Decoded, ImageSet
from apd.data.settings import Split, Which
from apd.errors import ApdError, InputError
from apd.evaluation.engine import Evaluation
from apd.evaluation.findings import Finding, Verification
from apd.evaluation.frozen import Subject
from apd.evaluation.inputs import load_other, read_settings
from apd.evaluation.measure import decoded_for
from apd.evaluation.result import Result
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.statistics import mcnemar, wilson
from apd.evaluation.store import Store
from apd.evaluation.summary import Finished, summarise
from apd.evaluation.surroundings import surroundings_of
from apd.evaluation.verify_files import Claim, check_files, read_claims
from apd.evaluation.verify_images import check_kept, check_unclaimed
from apd.models import load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.runs.headline import of_own_data
from apd.runs.load import load_run
from apd.util.device import pick_device
from apd.util.files import AnyPath
from apd.util.messages import get_logger, speaking
from apd.util.text import one_line, printable
from apd.util.trust import trust

log = get_logger("apd.evaluation")

SAMPLES = 64
"""Images per evaluation that are attacked again unless another number is asked for."""
_SURE = 0.999
"""Confidence of the interval in which the accuracy on all images must lie: one in a thousand honest ones may not."""
_UNLIKELY = 0.01
"""p-value of McNemar's test below which outcomes are called better than those of the attack that was repeated."""


_ENDLESS = 100_000
"""Attacks of so many steps are not repeated: they would take days on a single image."""
_STEPS = re.compile(r"(?:^(?:pgd|eot)-|=\s*)(\d[\d_]*)")


def verify_run(
    path: AnyPath,
    *,
    data: Sequence[str] = (),
    model: str | None = None,
    samples: int = SAMPLES,
    seed: int | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Verification:
    """Judge a run folder that somebody else has made.

    Hashes of prompts, settings and CLIP model, the agreement of results, outcomes, records, health checks and model card, and
    for each evaluation: the images, the answers without an attack, and the accuracies when some images, drawn anew, are
    attacked again as was stated. Nothing in the run is changed.

    Args:
        path: the run folder.
        data: where the images are here, one per data set; what is not given is looked for where the run says.
        model: where the CLIP model is here.
        samples: images per evaluation that are attacked again.
        seed: draws them; None: drawn at random, so that nobody can know them beforehand.
        device: auto, cpu, cuda, cuda:1 or mps.
        quiet: show nothing.

    Raises:
        InputError: not a finished run, a model or data that cannot be read, or fewer than 1 sample.

    Example:
        >>> import apd
        >>> apd.verify_run("runs/stranger").verified  # doctest: +SKIP
    """
    if samples < 1:
        raise InputError(f"samples must be 1 or more, got {samples}: without attacking again nothing is verified.")
    run = Run.open(path)
    trust(data, model)
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    with speaking(quiet):
        found = list(_findings(run, list(data), _Again(model, samples, drawn, device)))
    return Verification(str(path), samples, drawn, tuple(found))


@dataclass(frozen=True)
class _Again:
    """How images are attacked again."""

    model: str | None
    samples: int
    seed: int
    device: str


def _findings(run: Run, data: list[str], again: _Again) -> Iterator[Finding]:
    yield from check_files(run)
    read = [*read_claims(run.results)]
    claims = [each for each in read if isinstance(each, Claim)]
    found = [each for each in read if not isinstance(each, Claim)]
    yield from found
    if all(each.ok for each in found):  # else the data may be that of a damaged one
        _refuse_unused(run, data, claims)
    try:
        classifier = load_run(run.path, device=pick_device(again.device), model=again.model)
    except (ApdError, KeyError, TypeError, ValueError) as error:
        _check_options(run, data, again)
        yield Finding("encoder", False, one_line(error, 300))
        return
    yield Finding(
        "encoder", True, f"CLIP model, tokenizer and preprocessing are those of {classifier.encoder.info.source}"
    )
    for claim in claims:
        try:
            yield from _judge(claim, run, classifier, data, again)
        except (ApdError, KeyError, TypeError, ValueError) as error:
            _check_options(run, data, again)
            yield Finding("again", False, f"cannot be repeated: {one_line(error, 300)}", claim.file.name)
    yield from check_unclaimed(run.images, claims)


def _refuse_unused(run: Run, data: Sequence[str], claims: Sequence[Claim]) -> None:
    """Refuse data that no evaluation of the run is of, so that nobody believes that they were looked at.

    Raises:
        InputError: which.
    """
    names = {claim.result.data for claim in claims}
    for source in data if claims else ():
        if load_other(run, source).name not in names:
            known = ", ".join(map(repr, sorted(names)))
            raise InputError(f"--data {source}: no evaluation of {run.path} is of it; they are of {known}.")


def _check_options(run: Run, data: Sequence[str], again: _Again) -> None:
    """Refuse a model or data that cannot be read, so that a typo of whoever verifies is not a finding against the run.

    Raises:
        InputError: one of them cannot be loaded by itself.
    """
    if again.model is not None:
        load_clip(again.model)
    for source in data:
        load_other(run, source)


def _judge(claim: Claim, run: Run, classifier: PromptedCLIP, data: list[str], again: _Again) -> Iterator[Finding]:
    """Judge one evaluation with the model and the images."""
    file = claim.file.name
    images = _find_data(claim, run, data).classes(_which(claim))
    serving = classifier
    if serving.class_names != images.class_names:
        serving = classifier.with_classes(images.class_names, images.templates)
    own = _of_own_data(claim, run) and claim.result.classes == run.config.data.classes
    # Other classes, or these in another order, are served by the same prompts; the run's own data have its own.
    permuted = serving is not classifier and own
    known = Subject.of(serving).fingerprint == claim.result.classifier
    same = known and not permuted and images.class_names == claim.outcomes.class_names
    yield Finding(
        "classifier",
        same,
        "the evaluated classifier is this one"
        if same
        else "another classifier was evaluated: other prompts, class names, templates, CLIP model or code",
        file,
    )
    if same:
        yield from check_kept(run.images, claim, serving)
    problem = _images_problem(claim, images) or _readable(claim, images, serving)
    yield Finding("images", problem is None, problem or "the images and labels are those of the data", file)
    if problem is None:
        yield from _attack_again(claim, serving, images, again)


def _of_own_data(claim: Claim, run: Run) -> bool:
    return of_own_data(claim.result.model_dump(include={"data", "own_data"}), run.manifest)


def _find_data(claim: Claim, run: Run, data: list[str]) -> Dataset:
    """Load the data set that an evaluation names; of several with that name, the one that has its images.

    Raises:
        InputError: it is not the run's own and was not given, or cannot be read.
    """
    name, config = claim.result.data, run.config
    own, mine = config.data.for_evaluation(), _of_own_data(claim, run)
    given = [
        own.model_copy(update={"source": source}).load(config.train.seed) if mine else load_other(run, source)
        for source in data
    ]
    if mine and all(each.source != own.source for each in given):
        # Data that were given may be of other evaluations, and the run's own still where it says.
        with suppress(InputError) if data else nullcontext():
            given.append(own.load(config.train.seed))
    found = [each for each in given if each.name == name]
    if len(found) > 1:
        found = [each for each in found if _images_problem(claim, each.classes(_which(claim))) is None] or found
    if found:
        return found[0]
    told = (
        f"only {', '.join(repr(each.name) for each in given)}, and names must agree"
        if given
        else "give it: --data DATA"
    )
    raise InputError(f"its data {name!r} is not here; {told}")


def _which(claim: Claim) -> Which:
    return claim.result.classes  # type: ignore[return-value]


def _images_problem(claim: Claim, data: Dataset) -> str | None:
    """Say how the images differ from those that the data and the seed give; None where they do not."""
    result, outcomes = claim.result, claim.outcomes
    split: Split = result.split  # type: ignore[assignment]
    images = data.split(split)
    left_out = set(result.skipped_images)
    if len(left_out) != len(result.skipped_images):
        return "images are left out more than once"
    if result.n_available != len(images):
        return f"the {split} split has {len(images)} images, not {result.n_available}"
    drawn = images.sample(result.n + len(left_out), result.seed)
    labels = dict(zip(drawn.ids, drawn.labels.tolist(), strict=True))
    expected, stated = set(labels) - left_out, dict(zip(outcomes.ids, outcomes.labels, strict=True))
    if expected != set(stated):
        missing, more = len(expected - set(stated)), len(set(stated) - expected)
        return f"the seed draws other images: {missing} are left out, {more} are not of the draw"
    if not left_out <= set(labels):
        return "images are left out that the seed does not draw"
    wrong = sum(labels[id_] != label for id_, label in stated.items())
    return f"{wrong} labels are not those of the data" if wrong else None


def _readable(claim: Claim, data: Dataset, classifier: PromptedCLIP) -> str | None:
    """Say which images were left out as unreadable and can be read; None where none can."""
    images: ImageSet = data.split(claim.result.split)  # type: ignore[arg-type]
    left_out, settings = set(claim.result.skipped_images), _settings(claim)
    for index in (i for i, id_ in enumerate(images.ids) if id_ in left_out):
        with suppress(InputError):
            if len(decoded_for(images.select([index]), classifier.encoder.info.preprocessing, settings)):
                return f"{one_line(images.ids[index], 100)} was left out as unreadable, and can be read"
    return None


def _attack_again(claim: Claim, classifier: PromptedCLIP, data: Dataset, again: _Again) -> Iterator[Finding]:
    """Draw images, and compare pixels, answers and accuracies with what was stated of them."""
    result, outcomes, file = claim.result, claim.outcomes, claim.file.name
    if endless := next(filter(_is_endless, result.attacks), None):
        raise InputError(f"{endless} has more steps than can be repeated")
    split: Split = result.split  # type: ignore[assignment]
    of = dict(zip(outcomes.ids, range(len(outcomes)), strict=True))
    chosen = data.split(split)
    chosen = chosen.select([i for i, id_ in enumerate(chosen.ids) if id_ in of]).sample(again.samples, again.seed)
    settings = _settings(claim)
    decoded = decoded_for(chosen, classifier.encoder.info.preprocessing, settings)
    log.info(
        f"Attacking {len(decoded)} of {result.n} images again: {', '.join(map(printable, result.attacks)) or 'clean'}"
    )
    found = _evaluated(classifier, decoded, data, settings)
    own = {name: getattr(result, name) for name in _CIRCUMSTANCES} | {
        name: a.runs for name, a in result.attacks.items()
    }
    now = {name: getattr(found, name) for name in _CIRCUMSTANCES} | {name: a.runs for name, a in found.attacks.items()}
    differing = [
        f"{name}: {own[name]} was stated, {now[name]} is found" for name in own if own[name] not in (None, now[name])
    ]
    yield Finding(
        "again", not differing, one_line("; ".join(differing) or "it is repeated as it was stated", 300), file
    )
    index = [of[id_] for id_ in found.ids]
    pixels = sum(outcomes.pixels[i] != each for i, each in zip(index, found.pixels, strict=True))
    yield Finding(
        "pixels",
        not pixels,
        f"{pixels} of {found.n} images have other pixels" if pixels else "the pixels are the same",
        file,
    )
    for name in outcomes.predictions:
        yield _compared(claim, name, index, found)
    if outcomes.undefended is not None:
        plain = _evaluated(classifier.zero_shot(), decoded, data, settings.model_copy(update={"checks": False}))
        for name in outcomes.predictions:
            yield _compared(claim, name, index, plain, undefended=True)
    worse = found.reliable is False and result.reliable is not False
    message = f"reliable: {found.reliability.describe()}" if worse else "the health checks pass or fail as was stated"
    yield Finding("checks again", not worse, message, file)


def _is_endless(attack: str) -> bool:
    """Whether an attack's name asks for more steps than are repeated."""
    stated = [number.replace("_", "").lstrip("0") for number in _STEPS.findall(attack)]
    return largest_setting(attack) >= _ENDLESS or any(len(number) >= len(str(_ENDLESS)) for number in stated)


_CIRCUMSTANCES = ("image_size", "n_classes", "precision")
"""What a result says of how it was made that the evaluation of some images repeats."""


def _evaluated(classifier: PromptedCLIP, decoded: Decoded, data: Dataset, settings: EvaluationSettings) -> Result:
    """Evaluate on these images, with nothing kept; attacks may ask for other images of the data."""
    subject = Subject.of(classifier)
    size = decoded.images.shape[-1]
    zero_shot = classifier.zero_shot()  # on which attacks make images, as they did for the evaluation
    decode = partial(decoded_for, preprocessing=classifier.encoder.info.preprocessing, settings=settings)
    around = surroundings_of(zero_shot, data, decode, subject.device, size, settings)
    evaluation = Evaluation(
        subject, Samples(decoded), settings, Store(None), len(data.class_names), surroundings=around
    )
    finished = Finished(evaluation, evaluation.run())
    return summarise([finished], False, data.class_names, data.name, len(decoded) + len(decoded.skipped))


def _settings(claim: Claim) -> EvaluationSettings:
    result = claim.result
    stated = {
        "attacks": tuple(result.attacks) or ("clean",),
        "eps": repr(result.eps),
        "norm": result.norm,
        "seed": result.seed,
        "corruption": result.corruption,
        "batch_size": 32,
        "control": False,
        "checks": bool(result.checks),
        "split": result.split,
        "skip_bad_images": True,
    }
    return read_settings(EvaluationSettings, stated, "verify_run")


def _compared(claim: Claim, attack: str, index: Sequence[int], found: Result, *, undefended: bool = False) -> Finding:
    """Compare what was stated under one attack with what it gives now, on the same images and on all.

    Args:
        claim: the evaluation.
        attack: its name.
        index: places of the images in the outcomes.
        found: the evaluation of these images, made now.
        undefended: it is of zero-shot CLIP.
    """
    whole = claim.outcomes.right(attack, undefended=undefended)
    predictions = (claim.outcomes.undefended if undefended else None) or claim.outcomes.predictions
    stated = [whole[i] for i in index]
    now = found.robust_mask(attack).tolist()
    n, k = len(now), sum(now)
    low, high = (100 * end for end in wilson(k, n))
    least, most = (100 * end for end in wilson(k, n, _SURE))
    before, overall = 100 * sum(stated) / n, 100 * sum(whole) / len(whole)
    better = sum(stated) > k and mcnemar(stated, now) < _UNLIKELY
    if attack == "clean":  # nothing is drawn: the same pixels give the same answers, up to rounding
        guesses = [predictions[attack][i] for i in index]
        better = sum(one != other for one, other in zip(guesses, found.predictions[attack], strict=True)) > max(
            1, n // 50
        )
    ok = low <= before <= high and least <= overall <= most and not better
    of = "zero-shot CLIP, " if undefended else ""
    message = (
        f"{of}{printable(attack)}: {before:.1f} % was stated of these {n} images, {100 * k / n:.1f} % is found "
        f"({low:.1f} to {high:.1f}); {overall:.1f} % was stated of all {len(claim.outcomes)}"
    )
    return Finding("again", ok, message, claim.file.name)
