"""`evaluate_wording`: accuracy under other words for the classes, on clean and on attacked images."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from apd.attacks.threat import format_eps, parse_eps
from apd.data import Dataset
from apd.evaluation.engine import Evaluation
from apd.evaluation.frozen import Subject, exact_float32
from apd.evaluation.inputs import decode_sample, of_run, part_of, read_settings
from apd.evaluation.result import Accuracy
from apd.evaluation.samples import Samples
from apd.evaluation.store import Store
from apd.evaluation.wording.result import Change, Wording, WordingScores, change
from apd.evaluation.wording.settings import WordingOptions, WordingSettings
from apd.evaluation.wording.variants import TEMPLATES, Sources, read_entries, read_synonyms
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.runs.output import file_name, text_hash
from apd.util.files import AnyPath, write_atomic
from apd.util.messages import get_logger, speaking
from apd.util.progress import watched
from apd.util.versions import versions

log = get_logger("apd.evaluation")
_BATCH = 128


def evaluate_wording(
    classifier: PromptedCLIP,
    data: Dataset,
    *,
    synonyms: str | Path | None = None,
    templates: str | Path | None = None,
    words: str | Path | None = None,
    store: str | Path | None = None,
    **settings: Unpack[WordingOptions],
) -> Wording:
    """Evaluate a classifier under other words for its classes: typos, searched edits, synonyms, other templates.

    Every wording is judged on clean images, on images attacked under the original words (transferred) and on images attacked
    under that very wording (joint), so that both modalities are tested, apart and together.

    Args:
        classifier: with or without prompts.
        data: labelled images of its classes.
        synonyms: YAML file of alternative names, ``class: [name, ...]``; needed for ``changes="synonyms"``.
        templates: text file with a template per line; None: the seven of CLIP's authors for ImageNet.
        words: text file of words that no edit may make, such as a dictionary; those of the class names are always refused.
        store: folder that keeps what becomes of each attacked image; an interrupted call is continued.
        settings: of `WordingSettings`, such as ``changes=("typos", "edits")`` or ``attack="pgd-20"``.

    Raises:
        InputError: an unknown setting, other classes than the classifier's, a file that cannot be read, a name that does not
            fit into the context.

    Example:
        >>> import apd
        >>> from apd.evaluation.wording.measure import evaluate_wording
        >>> clip, data = apd.load_clip("glyphs"), apd.load_data("digits")
        >>> classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
        >>> found = evaluate_wording(classifier, data, changes="typos", variants=2, attack="clean", limit=20, quiet=True)
        >>> found.changes["typos"].clean.worst_case.accuracy <= found.clean.accuracy
        True
    """
    chosen = read_settings(
        WordingSettings, settings, "evaluate_wording", ("data", "synonyms", "templates", "words", "store")
    )
    sources = _sources(chosen, synonyms, templates, words)
    started = time.perf_counter()
    with speaking(chosen.quiet):
        if chosen.attack != "clean" and (doubt := chosen.evaluation.threat.doubt()):
            log.warning(doubt)
        data = part_of(data, chosen.classes)
        samples = decode_sample(classifier, data, chosen)
        kept = Store(None if store is None else Path(store))
        own = control = _scores(classifier, samples, chosen, sources, kept)
        if chosen.control and classifier.prompts is not None:
            control = _scores(classifier.zero_shot(), samples, chosen, sources, kept)
    prompts = classifier.prompts
    return Wording(
        **vars(own),
        undefended=control if chosen.control else None,
        attack=chosen.attack,
        eps_text=format_eps(chosen.evaluation.threat.eps, chosen.norm),
        norm=chosen.norm,
        distance=chosen.distance,
        seed=chosen.seed,
        data=data.name,
        split=chosen.split,
        classes=data.settings.classes,
        n=len(samples),
        n_available=len(data.split(chosen.split)),
        class_names=classifier.class_names,
        templates=classifier.templates,
        fixed_head=prompts is not None and prompts.spec.text_tokens > 0,
        seconds=round(time.perf_counter() - started, 1),
        versions=versions(),
    )


def evaluate_run_wording(
    path: AnyPath,
    *,
    data: str | Path | Dataset | None = None,
    model: str | None = None,
    device: str = "auto",
    synonyms: str | Path | None = None,
    templates: str | Path | None = None,
    words: str | Path | None = None,
    **settings: Unpack[WordingOptions],
) -> Wording:
    """Evaluate a finished run as `apd wording RUN` does, and keep the result in ``RUN/results``.

    Args:
        path: the run folder.
        data: other labelled images than the run's own.
        model: where the run's CLIP model is now, if it has moved since.
        device: auto, cpu, cuda, cuda:1 or mps.
        synonyms: YAML file of alternative names.
        templates: text file with a template per line.
        words: text file of words that no edit may make.
        settings: of `WordingSettings`; eps, norm, classes and skip_bad_images are the run's unless they are given.

    Raises:
        InputError: an unknown setting, not a finished run, a file that cannot be read, another process that is writing to the
            run.
    """
    config = Run.open(path).config
    own: WordingOptions = {"eps": config.train.eps, "norm": config.train.norm}
    own["skip_bad_images"] = config.data.skip_bad_images
    given: WordingOptions = {**own, **settings}
    chosen = read_settings(
        WordingSettings, given, "evaluate_run_wording", ("data", "model", "device", "synonyms", "templates", "words")
    )
    sources = _sources(chosen, synonyms, templates, words)  # before the model is loaded
    files = {"synonyms": synonyms, "templates": templates, "words": words}
    with speaking(chosen.quiet):
        inputs = of_run(path, data, model, device, settings.get("classes"), chosen.split)
        given["classes"] = inputs.classes
        with inputs.run.held():
            found = evaluate_wording(inputs.classifier, inputs.data, store=inputs.run.results, **files, **given)
            _save(inputs.run, found, parse_eps(given["eps"], given["norm"]), sources)
    return found


def _save(run: Run, found: Wording, eps: float, sources: Sources) -> None:
    """Keep the result in the run, in place of one under the same circumstances; other sources of words are told by a hash."""
    budget = format_eps(eps)  # in 255ths in any norm, so that older results keep their names
    name = "-".join([found.data, found.split, found.classes, found.attack, found.norm, budget, *found.changes])
    name += f"-seed{found.seed}-n{found.n}"
    if sources != Sources(seed=sources.seed):
        name += f"-{text_hash(repr((replace(sources, words=frozenset()), sorted(sources.words))))}"
    write_atomic(run.results / f"wording-{file_name(name)}.json", found.to_json() + "\n")


def _sources(
    settings: WordingSettings, synonyms: str | Path | None, templates: str | Path | None, words: str | Path | None
) -> Sources:
    return Sources(
        n=settings.variants,
        distance=settings.distance,
        candidates=settings.candidates,
        seed=settings.seed,
        synonyms=None if synonyms is None else read_synonyms(synonyms),
        templates=TEMPLATES if templates is None else read_entries(templates),
        words=frozenset() if words is None else frozenset(read_entries(words)),
    )


def _scores(
    classifier: PromptedCLIP, samples: Samples, settings: WordingSettings, sources: Sources, store: Store
) -> WordingScores:
    """One classifier under its own words and under all others."""
    with exact_float32(classifier.encoder.device):
        variants = {kind: sources.variants(kind, classifier) for kind in settings.changes}
    labels = samples.decoded.labels
    clean = _features(classifier, (samples.batch(part, classifier.encoder.device)[0] for part in _parts(samples)))
    original = {"clean": _right(classifier, clean, labels)}
    moved = clean
    if settings.attacked:
        moved = _features(classifier, _attacked(classifier, samples, settings, original["clean"]))
        original["joint"] = original["transferred"] = original["clean"] & _right(classifier, moved, labels)
    changes: dict[str, Change] = {}
    for kind, found in variants.items():
        worded = [one.of(classifier) for one in found]
        right = {"clean": torch.stack([_right(one, clean, labels) for one in worded])}
        if settings.attacked:
            right["transferred"] = right["clean"] & torch.stack([_right(one, moved, labels) for one in worded])
            right["joint"] = torch.stack(
                [_jointly(one, samples, settings, store) for one in watched(worded, len(worded), kind, "wordings")]
            )
        changes[kind] = change(found, original, right)
    under_attack = Accuracy.of(original["joint"].tolist()) if settings.attacked else None
    return WordingScores(clean=Accuracy.of(original["clean"].tolist()), attacked=under_attack, changes=changes)


def _parts(samples: Samples) -> list[range]:
    return [range(at, min(at + _BATCH, len(samples))) for at in range(0, len(samples), _BATCH)]


def _features(classifier: PromptedCLIP, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, D) of images, which depend on the visual prompts and not on the words."""
    bound = classifier.bind_detached()
    with torch.no_grad(), exact_float32(classifier.encoder.device):
        return torch.cat([bound.features(x) for x in batches])


def _right(classifier: PromptedCLIP, features: Tensor, labels: Tensor) -> Tensor:
    """Which images (N,) of these features are right under the classifier's words."""
    with torch.no_grad(), exact_float32(classifier.encoder.device):
        predicted = classifier.bind_detached().logits_from_features(features).argmax(dim=-1)
    return predicted.cpu() == labels


def _attacked(classifier: PromptedCLIP, samples: Samples, settings: WordingSettings, right: Tensor) -> Iterable[Tensor]:
    """Yield the images attacked under the original words; those that are wrong already stay as they are."""
    from apd import attacks

    subject, attack, threat = Subject.of(classifier), attacks.find(settings.attack), settings.evaluation.threat
    with subject.fixed():
        for part in _parts(samples):
            x, labels, ids = samples.batch(part, subject.device)
            index = right[list(part)].nonzero().flatten().to(subject.device)
            if len(index):
                batch = attacks.AttackBatch(x, labels, ids, settings.seed).select(index)
                x[index] = attack.checked(attack(subject.model, batch.copy(), threat), batch, threat).images.detach()
            yield x


def _jointly(classifier: PromptedCLIP, samples: Samples, settings: WordingSettings, store: Store) -> Tensor:
    """Which images (N,) stay right under an attack on the classifier with these very words."""
    n_classes = len(classifier.class_names)
    evaluation = Evaluation(Subject.of(classifier), samples, settings.evaluation, store, n_classes)
    with speaking(True):
        records = evaluation.run()
    clean, record = records["clean"].outcomes, records[settings.attack].outcomes
    return torch.tensor([record.get(key, clean[key]).predicted == key[2] for key in samples.keys])
