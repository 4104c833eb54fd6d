"""Whether the files of a run folder agree with each other: what can be seen without the model and without images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apd.attacks.threat import format_eps
from apd.errors import InputError
from apd.evaluation.checks import collapse, library_checks
from apd.evaluation.engine import PRECISION
from apd.evaluation.findings import Finding
from apd.evaluation.result import SCHEMA_VERSION, Accuracy, Check, ResultRecord, Scores
from apd.evaluation.samples import hash_of_keys
from apd.evaluation.store import Record, digest
from apd.evaluation.stored import Outcomes, read_outcomes
from apd.evaluation.summary import per_class
from apd.evaluation.verify_card import check_card
from apd.runs.folder import Run
from apd.runs.manifest import RESULT_WAY_OUT, read_result
from apd.runs.output import summary_files, summary_name
from apd.util.files import parse_json, read_json
from apd.util.pydantic_errors import complaint
from apd.util.tensors import sha256_of_file, sha256_of_text
from apd.util.text import one_line


@dataclass(frozen=True)
class Claim:
    """One evaluation that a run folder states.

    Args:
        file: its summary.
        result: the summary, of a valid form.
        raw: the same as JSON has it.
        outcomes: what became of each image.
    """

    file: Path
    result: ResultRecord
    raw: Mapping[str, Any]
    outcomes: Outcomes


def check_files(run: Run) -> Iterator[Finding]:
    """Compare prompts and settings with the hashes in ``run.json``, and the figures of the model card with the results."""
    prompts, config = run.path / "prompts.safetensors", run.path / "config.yaml"
    for name, file, hash_of in (("prompts", prompts, sha256_of_file), ("config", config, sha256_of_text)):
        key = f"{name}_sha256"
        stated = run.manifest.get(key)
        if not file.is_file():
            yield Finding(name, False, f"{file.name} is missing")
        elif stated is None:
            yield Finding(name, False, f"run.json has no {key}, so nothing says whether {file.name} is the run's own")
        else:
            same = hash_of(file) == stated
            yield Finding(name, same, f"{file.name} {'has' if same else 'does not have'} the hash in run.json")
    yield _agreeing(run)
    yield _card(run)


def _agreeing(run: Run) -> Finding:
    """Compare what config.yaml and run.json both say."""
    try:
        config, manifest = run.config, run.manifest
        prompts = config.method.settings.prompts.model_dump(mode="json")
        if prompts["class_specific"] is None:  # left open; run.json says what was decided
            prompts["class_specific"] = manifest["prompts"]["class_specific"]
        stated = {
            "data": (config.data.source, manifest["data"]["source"]),
            "seed": (config.train.seed, manifest["seeds"].get("train", config.train.seed)),
            "prompts": (prompts, manifest["prompts"]),
        }
    except (InputError, KeyError, TypeError, AttributeError) as error:
        return Finding("config", False, f"config.yaml and run.json cannot be compared: {one_line(error, 200)}")
    differing = [name for name, (one, other) in stated.items() if one != other]
    return Finding(
        "config",
        not differing,
        f"config.yaml and run.json name another {', '.join(differing)}"
        if differing
        else "config.yaml agrees with run.json",
    )


def _card(run: Run) -> Finding:
    """Compare the figures and settings that the model card states with those of the run, whatever its words."""
    try:
        problem = check_card(run)
    except _DAMAGED as error:
        return Finding("card", False, f"README.md cannot be compared with the results: {one_line(error, 200)}")
    if problem is not None:
        return Finding("card", False, f"README.md is not what the results give: {problem}")
    return Finding("card", True, "the figures and settings in README.md are those of the run")


def read_claims(results: Path) -> Iterator[Finding | Claim]:
    """Read the evaluations, each with what is wrong with it by itself."""
    files = summary_files(results)
    if not files:
        yield Finding("results", False, "the run has no evaluation to verify; make one: apd evaluate RUN")
    for file in files:
        try:
            claim = _claim(file)
            problems = "; ".join(_problems(claim))
            found = [Finding("results", not problems, problems or "the figures are those of the outcomes", file.name)]
            found += [_records(claim, results), _checks(claim, results)]
        except _DAMAGED as error:
            yield Finding("results", False, _problem(error), file.name)
        else:
            yield from found
            yield claim


_DAMAGED = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError)
"""What files of a stranger may end in that are read without regard to their form."""


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = one_line(complaint(error.errors()[0]), 200)
        return f"not a result of version {SCHEMA_VERSION}: {problem}; evaluate again with this apd"
    return one_line(error, 300)


def _claim(file: Path) -> Claim:
    raw = read_json(file, RESULT_WAY_OUT)
    result = ResultRecord.model_validate(raw)
    outcomes = read_outcomes(file)
    if outcomes is None:
        raise InputError("the outcomes of single images are missing; evaluate again: apd evaluate RUN")
    if len(outcomes) == 0:
        raise InputError("an evaluation of no image")
    return Claim(file, result, raw, outcomes)


def _problems(claim: Claim) -> Iterator[str]:
    """Say what a summary states that its outcomes do not give."""
    result, outcomes = claim.result, claim.outcomes
    if claim.file.name not in [
        summary_name(result.model_dump(mode="json"), apart) for apart in (None, "images", "attacks")
    ]:
        yield "the file has the name of another evaluation"
    if result.n != len(outcomes) or {"clean", *result.attacks} != set(outcomes.predictions):
        yield "images or attacks are not those of the outcomes"
        return
    if len(set(outcomes.ids)) != len(outcomes) or len(outcomes) + len(result.skipped_images) > result.n_available:
        yield "images count more than once"
    if result.eps_text not in (format_eps(result.eps, result.norm), format_eps(result.eps)):
        yield f"eps is {result.eps:g} and {result.eps_text}"
    if hash_of_keys(outcomes.keys) != result.images_sha256:
        yield "the images are others (images_sha256)"
    yield from _wrong_accuracies(result, outcomes)
    yield from _wrong_checks(result)
    stated = {name: claim.raw.get(name) for name in ("reliable", "unreliable_because")}
    if stated != result.model_dump(mode="json", include={*stated}):
        yield "reliable is not what the health checks say"


def _wrong_accuracies(result: ResultRecord, outcomes: Outcomes) -> Iterator[str]:
    yield from _wrong_scores(result, outcomes.right, "")
    if (result.undefended is None) != (outcomes.undefended is None):
        yield "zero-shot CLIP is stated by only one of summary and outcomes"
    elif result.undefended is not None:
        yield from _wrong_scores(result.undefended, partial(outcomes.right, undefended=True), "zero-shot CLIP, ")
    predictions = {name: list(guesses) for name, guesses in outcomes.predictions.items()}
    if result.per_class != per_class(list(outcomes.labels), predictions, outcomes.class_names):
        yield "the figures per class are not those of the outcomes"


def _wrong_scores(scores: Scores, right: Callable[[str], list[bool]], of: str) -> Iterator[str]:
    clean = Accuracy(accuracy=scores.clean, interval=scores.clean_interval)
    for name, score in {"clean": clean, "worst": scores.worst, **scores.attacks}.items():
        given = Accuracy.of(right(name))
        if (score.accuracy, score.interval) != (given.accuracy, given.interval):
            yield f"{of}{name} is stated as {score.accuracy} %, the outcomes give {given.accuracy} %"


def _wrong_checks(result: ResultRecord) -> Iterator[str]:
    """Say which health checks are not what the accuracies give, or claim only to warn."""
    stated = {check.name: check for check in result.checks}
    for check in result.checks:
        if check.warns and check.name != "collapse":
            yield f"the health check {check.name} only warns here, which it never does"
    control = result.undefended
    if not stated or control is None:
        return
    # A run that is zero-shot CLIP itself is its own control.
    itself = control.model_dump() == result.model_dump(include=set(Scores.model_fields))
    expected = {} if itself else {"collapse": collapse(result, control).passed}
    given = {name: stated[name].passed for name in expected if name in stated}
    keeps = stated.get("undefended")
    if given != expected or (keeps is not None and keeps.value != control.worst.accuracy):
        yield "the health checks that compare with zero-shot CLIP are not what the accuracies give"


def _circumstances(result: ResultRecord, attack: str) -> dict[str, Any]:
    """What the record of an attack must say that its outcomes depend on."""
    about = {"attack": attack, "model": result.classifier, "precision": PRECISION}
    if result.corruption is not None:
        about["corruption"] = result.corruption
    limits = {"eps": repr(result.eps), "norm": result.norm, "seed": str(result.seed)}
    return about if attack == "clean" else about | limits


def _records(claim: Claim, results: Path) -> Finding:
    """Compare outcomes with the records that grew while the attacks ran; these name model, attack, eps, norm and seed."""
    found = {name: _find_record(results, _circumstances(claim.result, name)) for name in claim.outcomes.predictions}
    without = [name for name, records in found.items() if not records]
    if without:
        return Finding(
            "records",
            False,
            f"no record of {one_line(', '.join(without), 100)} on this model at {claim.result.norm} eps "
            f"{claim.result.eps_text} with seed {claim.result.seed}",
            claim.file.name,
        )
    for name, records in found.items():
        same = [record for record in records if _same_outcomes(claim.outcomes, name, record)]
        if not same:
            return Finding("records", False, f"outcomes under {name} are not those that were recorded", claim.file.name)
        if name != "clean" and not any(_same_course(claim, name, record) for record in same):
            problem = f"what fooled the images under {name}, or what its library warned of, is not as recorded"
            return Finding("records", False, problem, claim.file.name)
    return Finding("records", True, "the outcomes are those that were recorded while the attacks ran", claim.file.name)


def _find_record(results: Path, wanted: Mapping[str, Any]) -> list[Record]:
    """Records of the same circumstances as far as they are wanted; the file's name has their hash."""
    found = []
    for file in filter(Path.is_file, sorted(results.glob("*.jsonl"))):  # a pipe would never end
        try:
            with open(file, encoding="utf-8") as lines:
                about = parse_json(lines.readline(10**6), file, RESULT_WAY_OUT)["circumstances"]
            if file.stem.endswith(f"-{digest(about)}") and wanted.items() <= about.items():
                found.append(Record.load(file, about))
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not a record that could prove anything
    return found


def _same_outcomes(outcomes: Outcomes, attack: str, record: Record) -> bool:
    """Whether each image has the recorded prediction, and misclassified ones, which are not attacked, the clean one."""
    clean = outcomes.predictions["clean"]
    for key, before, stated in zip(outcomes.keys, clean, outcomes.predictions[attack], strict=True):
        attacked = attack == "clean" or before == key[2]
        known = record.outcomes.get(key)
        if (known is None or known.predicted != stated) if attacked else stated != before:
            return False
    return True


def _same_course(claim: Claim, attack: str, record: Record) -> bool:
    """Whether the parts that fooled images are those that were recorded, and the warnings, unless more images were recorded."""
    score = claim.result.attacks[attack]
    known = [record.outcomes.get(key) for key in claim.outcomes.keys]
    by = Counter(outcome.by for outcome in known if outcome is not None and outcome.by)
    others = len(record.outcomes) > sum(outcome is not None for outcome in known)
    return by == score.fooled_by and (others or record.flags == score.flags)


def _checked_at_a_larger_budget(claim: Claim, results: Path) -> bool:
    """Whether another result is like this one but for a larger eps, and has health checks, as `apd evaluate --curve` has it."""
    for file in summary_files(results):
        try:
            other = read_result(file)
            alike = all(other[name] == claim.raw[name] for name in _SAME_ON_A_CURVE)
            alike = alike and other["attacks"].keys() == claim.raw["attacks"].keys()
            if alike and other["checks"] and float(other["eps"]) > claim.result.eps:
                return True
        except _DAMAGED:
            continue  # what is wrong with it is told where it is read as a claim
    return False


_SAME_ON_A_CURVE = ("classifier", "data", "split", "classes", "corruption", "norm", "seed", "n", "image_size")


def _checks(claim: Claim, results: Path) -> Finding:
    """Compare the health checks with those that were kept; what an attack's library said is not among these."""
    own = [check.model_dump() for check in claim.result.checks]
    if not own:
        checked = _checked_at_a_larger_budget(claim, results)
        why = (
            "no health checks ran here, but at a larger budget of the same curve" if checked else "no health checks ran"
        )
        return Finding("checks", checked, why if checked else f"{why}; evaluate again", claim.file.name)
    said = [check.model_dump() for check in library_checks(claim.result.attacks, claim.result.n)]
    if any(check not in own for check in said):
        return Finding("checks", False, "what the attacks' library warned of is not among the checks", claim.file.name)
    for file in sorted(results.glob("checks-*.json")):
        try:
            kept = [Check.model_validate(check).model_dump() for check in read_json(file, RESULT_WAY_OUT)]
        except _DAMAGED:
            continue
        if kept and kept == own[: len(kept)]:
            return Finding("checks", True, "the health checks are those that were kept", claim.file.name)
    return Finding("checks", False, "the health checks are not those that were kept", claim.file.name)
