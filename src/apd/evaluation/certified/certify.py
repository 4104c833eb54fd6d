"""`certify`: from a classifier and data to certified accuracy; `certify_run`: the same for a run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from apd.data import Dataset
from apd.evaluation.certified.attack import DRAWS, STEPS, attack_smoothed
from apd.evaluation.certified.features import visual_side
from apd.evaluation.certified.record import VoteRecord
from apd.evaluation.certified.result import Certified, CertifiedScores, certified_images, scores
from apd.evaluation.certified.settings import CertifyOptions, CertifySettings
from apd.evaluation.certified.smoothing import Votes, votes
from apd.evaluation.certified.stored import save_certified
from apd.evaluation.frozen import Subject
from apd.evaluation.inputs import decode_sample, is_own, of_run, part_of, read_settings
from apd.evaluation.samples import Samples
from apd.models.classifier import PromptedCLIP
from apd.util.files import AnyPath, user_path
from apd.util.messages import get_logger, speaking
from apd.util.progress import Count, Progress
from apd.util.seeds import sample_seeds
from apd.util.versions import versions

log = get_logger("apd.evaluation")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A classifier to be certified, and what is known of it.

    Args:
        name: in progress lines.
        subject: as attacks see it, in float32.
        classifier: the same with its two sides apart.
        folder: where its votes are kept; None: nowhere.
    """

    name: str
    subject: Subject
    classifier: PromptedCLIP
    folder: Path | None

    def record(self, settings: CertifySettings, **more: str) -> VoteRecord:
        """Return its votes under this noise that are known already."""
        how = settings.smoothing
        about = {"model": self.subject.fingerprint, "sigma": repr(how.sigma), "n0": str(how.n0), "n": str(how.n)}
        about |= {"seed": str(settings.seed), "apd": versions()["apd"], **more}
        return VoteRecord.load(self.folder, about)


def certify(
    classifier: PromptedCLIP, data: Dataset, *, store: str | Path | None = None, **settings: Unpack[CertifyOptions]
) -> Certified:
    """Certify a classifier by randomised smoothing: how far, in L2, no image at all can change its answer.

    What is certified is the smoothed classifier, the majority answer under noise, and not the answer to a single image.

    Args:
        classifier: with or without prompts.
        data: labelled images of its classes.
        store: folder that keeps the votes on each image; an interrupted call is continued, and nothing done twice.
        settings: of `CertifySettings`, such as ``sigma=0.25``, ``n=10000`` or ``attack=True``.

    Raises:
        InputError: an unknown setting, other classes than the classifier's, no images, an image that cannot be read.

    Example:
        >>> import apd
        >>> from apd.evaluation.certified.certify import certify
        >>> clip, data = apd.load_clip("glyphs"), apd.load_data("digits")
        >>> classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
        >>> found = certify(classifier, data, sigma=0.1, n0=10, n=54, limit=2, control=False, quiet=True)
        >>> len(found.images), found.curve[0].radius
        (2, 0.0)
    """
    chosen = read_settings(CertifySettings, settings, "certify", ("data", "store"))
    started = time.perf_counter()
    with speaking(chosen.quiet):
        data = part_of(data, chosen.classes)
        samples = decode_sample(classifier, data, chosen)
        found = _certified(_candidates(classifier, store, chosen.control), samples, chosen)
    decoded = samples.decoded
    return Certified(
        **vars(found[0]),
        undefended=found[-1] if chosen.control else None,
        sigma=chosen.sigma,
        n0=chosen.n0,
        n=chosen.n,
        alpha=chosen.alpha,
        largest_radius=round(chosen.smoothing.largest_radius, 6),
        seed=chosen.seed,
        data=data.name,
        split=chosen.split,
        classes=data.settings.classes,
        n_images=len(decoded),
        n_available=len(data.split(chosen.split)),
        n_classes=len(data.class_names),
        image_size=decoded.images.shape[-1],
        skipped_images=decoded.skipped,
        seconds=round(time.perf_counter() - started, 1),
        versions=versions(),
    )


def certify_run(
    path: AnyPath,
    *,
    data: str | Path | Dataset | None = None,
    model: str | None = None,
    device: str = "auto",
    **settings: Unpack[CertifyOptions],
) -> Certified:
    """Certify a finished run as `apd certify RUN` does, and keep the result in ``RUN/results``.

    Args:
        path: the run folder.
        data: other labelled images than the run's own.
        model: where the run's CLIP model is now, if it has moved since.
        device: auto, cpu, cuda, cuda:1 or mps.
        settings: of `CertifySettings`; classes and skip_bad_images are the run's unless they are given.

    Raises:
        InputError: an unknown setting, not a finished run, images that cannot be read, another process that is writing to the
            run.
    """
    # Before the model is loaded.
    chosen = read_settings(CertifySettings, settings, "certify_run", ("data", "model", "device"))
    with speaking(chosen.quiet):
        inputs = of_run(path, data, model, device, settings.get("classes"), chosen.split)
        own: CertifyOptions = {"skip_bad_images": inputs.run.config.data.skip_bad_images}
        given: CertifyOptions = {**own, **settings, "classes": inputs.classes}
        with inputs.run.held():
            found = certify(inputs.classifier, inputs.data, store=inputs.run.results, **given)
            found = found.model_copy(update={"own_data": is_own(inputs.run, inputs.data)})
            save_certified(inputs.run, found)
    return found


def _candidates(classifier: PromptedCLIP, store: str | Path | None, control: bool) -> list[Candidate]:
    """The classifier, and zero-shot CLIP where that is asked for and is another."""
    folder = None if store is None else user_path(store)
    own = Candidate("", Subject.of(classifier), classifier, folder)
    if not control:
        return [own]
    zero_shot = classifier.zero_shot()
    other = Candidate(" of zero-shot CLIP", Subject.of(zero_shot), zero_shot, folder)
    return [own] if own.subject.fingerprint == other.subject.fingerprint else [own, other]


def _certified(candidates: Sequence[Candidate], samples: Samples, settings: CertifySettings) -> list[CertifiedScores]:
    """Let every candidate vote, attack it if that is asked for, and return their curves."""
    known = _voted(candidates, samples, settings)
    found = []
    for candidate, record in zip(candidates, known, strict=True):
        own = [record.known[key] for key in samples.keys]
        ids, labels = samples.decoded.ids, samples.decoded.labels.tolist()
        images = certified_images(ids, labels, own, settings.smoothing)
        attacked = (
            _attacked(candidate, samples, settings, dict(zip(ids, own, strict=True))) if settings.attack else None
        )
        found.append(scores(images, settings.table_radii, attacked))
    return found


def _voted(candidates: Sequence[Candidate], samples: Samples, settings: CertifySettings) -> list[VoteRecord]:
    """Votes of all candidates on all images; those with the same visual side share the passes of the image tower."""
    records = [candidate.record(settings) for candidate in candidates]
    sides = [visual_side(candidate.classifier) for candidate in candidates]
    seeds = sample_seeds(samples.decoded.ids, settings.seed, "noise").tolist()
    for side in dict.fromkeys(sides):
        group = [place for place, own in enumerate(sides) if own == side]
        todo = [i for i, key in enumerate(samples.keys) if any(key not in records[place].known for place in group)]
        title = f"votes under noise{candidates[group[0]].name}"
        total = len(samples)
        with candidates[group[0]].subject.fixed(), Progress(title, Count(total, "images", total - len(todo))) as shown:
            bound = [candidates[place].classifier.bind_detached() for place in group]
            heads = [one.logits_from_features for one in bound]
            for i in todo:
                x, _, _ = samples.batch([i], candidates[group[0]].subject.device)
                found = votes(bound[0].features, heads, x[0], seeds[i], settings.smoothing)
                for place, one in zip(group, found, strict=True):
                    records[place].add(samples.keys[i], one)
                shown.count.advance()
    return records


def _attacked(
    candidate: Candidate, samples: Samples, settings: CertifySettings, clean: dict[str, Votes]
) -> dict[float, dict[str, Votes]]:
    """Votes on the images that an attack finds at each radius; what has fallen to a smaller one is not attacked again."""
    found = {}
    standing = [i for i, (id_, _, label) in enumerate(samples.keys) if clean[id_].winner == label]
    for radius in settings.table_radii:
        if radius == 0:
            found[radius] = clean
            continue
        record = candidate.record(settings, radius=repr(radius), attack=f"pgd-{STEPS} over {DRAWS} draws")
        title = f"attack within {radius:.3g}{candidate.name}"
        todo = [i for i in standing if samples.keys[i] not in record.known]
        with (
            candidate.subject.fixed(),
            Progress(title, Count(len(standing), "images", len(standing) - len(todo))) as shown,
        ):
            for i in todo:
                x, _, _ = samples.batch([i], candidate.subject.device)
                id_, _, label = samples.keys[i]
                how = settings.smoothing
                record.add(
                    samples.keys[i],
                    attack_smoothed(candidate.subject.model, x[0], label, id_, radius, how, settings.seed),
                )
                shown.count.advance()
        found[radius] = {samples.decoded.ids[i]: record.known[samples.keys[i]] for i in standing}
        standing = [i for i in standing if record.known[samples.keys[i]].winner == samples.keys[i][2]]
    return found
