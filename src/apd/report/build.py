"""`report`: from run folders to one page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from apd.attacks.threat import format_eps
from apd.errors import InputError
from apd.evaluation.compare import compare_runs
from apd.evaluation.measure import evaluate
from apd.evaluation.settings import find_within
from apd.models import DualEncoder
from apd.report.confidence import confidence_chart, measure_confidence
from apd.report.facts import RunFacts, curve_point, read_runs
from apd.report.page import render
from apd.report.views import run_view
from apd.report.wall import Gallery, Seen, build_wall, see
from apd.runs.load import is_recorded, load_run
from apd.util.device import pick_device
from apd.util.extras import import_extra
from apd.util.files import AnyPath, user_path, write_atomic
from apd.util.locks import output_lock
from apd.util.messages import get_logger, speaking
from apd.util.outputs import check_output_file

log = get_logger("apd.report")

EACH, EACH_OF_SEVERAL = 4, 2
"""Images of each kind on the wall: of one run, and of each of several."""
SHARES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Where a curve is computed, in multiples of the evaluation's eps."""
CURVE_ATTACK, CURVE_IMAGES = "pgd-20", 100
"""Attack and most images of a computed curve."""


@dataclass(frozen=True)
class ReportSettings:
    """What a report contains.

    Args:
        images: attack a few images and show them; needs the CLIP model and the evaluated images.
        curve: compute accuracy against eps, and what abstaining below a confidence is worth.
        attack: makes the images that are shown.
        data: where the evaluated images are, if they are not the run's own or have moved.
        model: where the CLIP model is now, if it has moved.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    images: bool = True
    curve: bool = False
    attack: str = "pgd-20"
    data: str | None = None
    model: str | None = None
    device: str = "auto"


def report(
    runs: AnyPath | Sequence[AnyPath],
    output: str | Path,
    *,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Write one self-contained HTML page on evaluated runs.

    The page's numbers are those that the run folders keep; only the images on it are attacked anew, by an attack that the
    page names.

    Args:
        runs: one run folder, or several, which are compared with the first; also folders that `apd evaluate --classifier` has
            written.
        output: the HTML file; a page that is there is replaced.
        quiet: no progress on standard error.
        settings: of `ReportSettings`, such as ``curve=True`` or ``images=False``.

    Returns:
        The file.

    Raises:
        InputError: not a finished run, no evaluation, a CLIP model or images that have moved or changed, an output that is
            another kind of file; another process that is writing it, or, with ``curve``, to one of the runs.

    Example:
        >>> from apd.report import report
        >>> report("runs/digits", "report.html")  # doctest: +SKIP
    """
    chosen, file = ReportSettings(**settings), user_path(output)
    if not chosen.images and chosen.attack != ReportSettings.attack:
        raise InputError(f"attack={chosen.attack} makes the images that are shown, and none are; leave it out.")
    import_extra("jinja2", "report", "apd report")
    check_output_file(file, "report.html")
    if file.suffix.lower() not in ("", ".html", ".htm"):
        raise InputError(f"{output} would be an HTML page by another ending; name it {file.with_suffix('.html')}.")
    if file.is_file() and not _is_page(file):
        raise InputError(f"{output} is not an HTML page, and would be replaced; give the report another file name.")
    found = read_runs([runs] if isinstance(runs, str | PathLike) else list(runs))
    for facts in found:
        if not _why_no_wall(facts, chosen):
            find_within(chosen.attack, facts.summary["norm"])
    with speaking(quiet), output_lock(file), ExitStack() as held:
        for facts in found if chosen.curve else ():
            if facts.folder is None or facts.headline is None:
                raise InputError(f"{facts.path} keeps no evaluated prompts to attack; make its report without --curve.")
            held.enter_context(facts.run.held())
        write_atomic(file, _page(found, chosen))
    return file


def _is_page(file: Path) -> bool:
    """Whether a file is empty or begins as an HTML page does."""
    with file.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    return not start or start.startswith((b"<!doctype html", b"<html"))


def _page(found: Sequence[RunFacts], settings: ReportSettings) -> str:
    gallery, encoders = Gallery(), dict[str, DualEncoder]()
    each = EACH if len(found) == 1 else EACH_OF_SEVERAL
    views = []
    for place, facts in enumerate(found, 1):
        log.info(f"reading {facts.name}")
        seen = _see(facts, settings, encoders) if _needs_model(facts, settings) else None
        view = run_view(facts, place, _curve(facts, seen) if seen and settings.curve and facts.attack else [])
        view["confidence"] = _confidence(facts, seen) if seen and settings.curve else None
        view["wall"], view["no_wall"] = None, _why_no_wall(facts, settings)
        if seen and not view["no_wall"]:
            log.info(f"attacking images of {facts.name} with {settings.attack}")
            view["wall"] = build_wall(facts, seen, settings.attack, each, gallery)
        views.append({**view, "each": each})
    comparisons, no_comparison = _compared(found)
    return render(views, comparisons, no_comparison, gallery.encode())


def _needs_model(facts: RunFacts, settings: ReportSettings) -> bool:
    return settings.curve or not _why_no_wall(facts, settings)


def _why_no_wall(facts: RunFacts, settings: ReportSettings) -> str:
    """Say why no images are shown; nothing if they are."""
    if not settings.images:
        return "The report was made without images."
    if facts.folder is None:
        return "The folder keeps what became of each image, but not the classifier that would be attacked."
    if facts.attack is None:
        return "The evaluation has no attack; apd evaluate RUN adds one."
    if facts.outcomes is None:
        return "The run folder does not keep what became of each image; apd evaluate RUN adds it."
    return ""


def _see(facts: RunFacts, settings: ReportSettings, encoders: dict[str, DualEncoder]) -> Seen:
    """Load model and images; runs on the same CLIP model share it."""
    record = facts.run.manifest["model"]
    known = encoders.get(record["weights_sha256"])
    known = known if known is not None and is_recorded(record, known.info) else None
    try:
        classifier = load_run(facts.run.path, device=pick_device(settings.device), model=settings.model, encoder=known)
        encoders[record["weights_sha256"]] = classifier.encoder
        return see(facts, classifier, settings.data)
    except InputError as error:
        raise InputError(f"{error} (--no-images, in Python images=False, makes the page without images.)") from error


def _curve(facts: RunFacts, seen: Seen) -> list[dict[str, Any]]:
    """Compute accuracy against eps by a quick attack, on a sample of the images; outcomes are kept in the run folder."""
    summary, points = facts.summary, list[dict[str, Any]]()
    asked = {key: summary[key] for key in ("norm", "seed", "split", "classes")}
    skipped = len(summary["skipped_images"])
    limit = CURVE_IMAGES if summary["n"] > CURVE_IMAGES else summary["n"] + skipped
    asked |= {"corruption": summary.get("corruption"), "limit": limit, "skip_bad_images": skipped > 0, "checks": False}
    most = 1.0 if summary["norm"] == "linf" else math.inf
    for eps in dict.fromkeys(min(summary["eps"] * share, most) for share in SHARES):
        log.info(
            f"attacking {asked['limit']} images with {CURVE_ATTACK} at {summary['norm']} eps {format_eps(eps, summary['norm'])}"
        )
        result = evaluate(seen.classifier, seen.data, store=facts.run.results, attacks=CURVE_ATTACK, eps=eps, **asked)
        points += [] if points else [curve_point(result.to_dict(), clean=True)]
        points.append(curve_point(result.to_dict()))
    return points


def _confidence(facts: RunFacts, seen: Seen) -> dict[str, Any] | None:
    """Measure what abstaining is worth; None without an attack or without outcomes of each image."""
    if facts.attack is None or facts.outcomes is None:
        return None
    log.info(f"measuring confidences of {facts.name}")
    found = measure_confidence(facts, seen, CURVE_IMAGES)
    return {**found, "chart": confidence_chart(found["points"])}


def _compared(found: Sequence[RunFacts]) -> tuple[list[Mapping[str, Any]], str]:
    """Paired differences to the first run, and why there are none."""
    if len(found) < 2:
        return [], ""
    try:
        comparisons = compare_runs([facts.path for facts in found])
    except InputError as error:
        return [], str(error)
    names = [facts.name for facts in found]
    return [
        {**comparison.to_dict(), "a": names[0], "b": name}
        for comparison, name in zip(comparisons, names[1:], strict=True)
    ], ""
