"""Certified accuracy on the page: one curve per certification that the run folder keeps."""

from __future__ import annotations

from typing import Any

from apd.evaluation.certified.result import Certified, CertifiedScores
from apd.evaluation.certified.stored import load_certified
from apd.report.charts import Line, line_chart
from apd.runs.folder import Run
from apd.runs.headline import of_own_data
from apd.util.text import quoted


def certified_views(run: Run) -> list[dict[str, Any]]:
    """Return, for each certification, what it says of its images and its chart."""
    return [_view(run, found) for found in load_certified(run)]


def _view(run: Run, found: Certified) -> dict[str, Any]:
    lines = [_line("robust prompts", "own", found)]
    lines += [_line("zero-shot CLIP", "other", found.undefended)] if found.undefended is not None else []
    if found.curve[0].attacked is not None:
        points = [(point.radius, point.attacked) for point in found.curve if point.attacked is not None]
        labels = [f"radius {radius:.3g}, under attack: {one.accuracy:.1f} %" for radius, one in points]
        lines.append(Line("under attack", "third", [(radius, one.accuracy) for radius, one in points], labels))
    first, last = found.curve[0], found.curve[-1]
    summary = f"From {first.accuracy:.1f} % at radius 0 to {last.accuracy:.1f} % at radius {last.radius:.3g}."
    title = f"Certified accuracy, noise of sigma {found.sigma:g}"
    return {
        "chart": line_chart(title, summary, lines, ("L2 radius", "certified accuracy in %"), percent=True),
        "about": f"{found.n_images} {found.split} images of {found.data}, {found.n0} + {found.n} draws per image",
        "sound": found.sound,
        "command": _again(run, found),
        "curve": [{"radius": point.radius, "accuracy": point.accuracy} for point in found.curve],
    }


def _again(run: Run, found: Certified) -> str:
    """The command that certifies as this was done."""
    certify = [f"apd certify runs/again --sigma {found.sigma:g} --n0 {found.n0} --n {found.n} --alpha {found.alpha:g}"]
    certify += [f"--{name} {getattr(found, name)}" for name in ("seed", "split", "classes")]
    certify += [f"--limit {found.n_images + len(found.skipped_images)}"]
    certify += ["--skip-bad-images"] if found.skipped_images else []
    certify += ["--no-control"] if found.undefended is None else []
    certify += ["--attack"] if found.curve[0].attacked is not None else []
    certify += [] if of_own_data(vars(found), run.manifest) else [f"--data {quoted(found.data)}"]
    return " ".join(certify)


def _line(name: str, style: str, scores: CertifiedScores) -> Line:
    return Line(
        name,
        style,
        [(point.radius, point.accuracy) for point in scores.curve],
        [f"radius {point.radius:.3g}, {name}: {point.accuracy:.1f} %" for point in scores.curve],
        [point.interval for point in scores.curve],
    )
