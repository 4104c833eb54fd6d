"""The page's HTML, from a template with escaping on: class and file names come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from apd.evaluation.compare import Row
from apd.evaluation.statistics import p_text
from apd.report.wall import ZERO_SHOT
from apd.runs.reliability import reliability
from apd.util.text import printable
from apd.util.versions import __version__

FORMAT = 1
"""Version of the data that the page carries."""
_CONTENT = (
    "summary",
    "attack",
    "versus",
    "evaluations",
    "curve",
    "computed",
    "classes",
    "confusions",
    "wall",
    "cost",
    "about",
    "calibration",
)


def render(
    views: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    no_comparison: str,
    images: Mapping[str, str],
) -> str:
    """Fill the template.

    Args:
        views: runs, as `apd.report.views.run_view` lays them out.
        comparisons: paired differences to the first run.
        no_comparison: why there are none.
        images: ``data:`` addresses by name.
    """
    from jinja2 import Environment, StrictUndefined

    folder = files("apd") / "assets" / "report"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "points": _points, "p": p_text}
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        style=(folder / "page.css").read_text(encoding="utf-8"),
        title=printable(_title(views)),
        best=_shown(_with_doubt(best_under_attack(views), views)),
        runs=_shown(views),
        comparisons=_shown([_with_images(comparison) for comparison in comparisons]),
        no_comparison=printable(no_comparison),
        images=images,
        zero_shot=ZERO_SHOT,
        version=__version__,
        data=_data(views, comparisons),
    )


def _title(views: Sequence[Mapping[str, Any]]) -> str:
    return f"How robust is the run {views[0]['name']}?" if len(views) == 1 else f"{len(views)} runs side by side"


def _shown(value: Any) -> Any:
    """Replace control characters and text-direction overrides in all texts by escapes; line breaks stay."""
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, Mapping):
        return {_shown(key): _shown(entry) for key, entry in value.items()}
    return [_shown(entry) for entry in value] if isinstance(value, list | tuple) else value


def best_under_attack(views: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the run that keeps most under attack, of equal ones most without; None where they were not attacked alike.

    A run whose health checks failed is taken only where those of all did.
    """
    alike = {
        (*(s[name] for name in ("data", "split", "classes", "norm", "eps", "n", "corruption")), *s["attacks"])
        for s in (view["summary"] for view in views if view["summary"])
    }
    attacked = all(view["attack"] for view in views)
    if not attacked or len(alike) != 1:
        return None
    believed = [view for view in views if not _doubted(view)] or views
    return max(believed, key=lambda view: (view["summary"]["worst"]["accuracy"], view["summary"]["clean"]))


def _with_images(comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add to each row what its images are called."""
    return {**comparison, "rows": [{**row, "images": Row(**row).images} for row in comparison["rows"]]}


def _doubted(view: Mapping[str, Any]) -> bool:
    """Whether health checks say that a run's figures are not to be trusted."""
    return reliability(view["summary"]).reliable is False


def _with_doubt(best: Mapping[str, Any] | None, views: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Add what must be known of a claim that one run is the best of all."""
    if best is None:
        return None
    doubted = [view["name"] for view in views if _doubted(view)]
    if not doubted:
        return {**best, "doubted": ""}
    who = "These figures" if _doubted(best) else f"Left out: {', '.join(doubted)}, whose figures"
    return {**best, "doubted": f"{who} are not reliable: health checks failed."}


def _data(views: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The page's numbers as JSON that ends no script element, whatever names it holds."""
    record = {
        "format": FORMAT,
        "apd": __version__,
        "runs": [_run_data(view) for view in views],
        "comparisons": comparisons,
    }
    text = json.dumps(record, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _run_data(view: Mapping[str, Any]) -> dict[str, Any]:
    confidence = view["confidence"]
    shown = None if confidence is None else {key: value for key, value in confidence.items() if key != "chart"}
    certified = [{key: value for key, value in one.items() if key != "chart"} for one in view["certified"]]
    found = {"name": view["name"], **{key: view[key] for key in _CONTENT}, "confidence": shown}
    return {**found, "certified": certified}


def _number(value: float) -> str:
    """A percentage as the page writes it; the exact value stands beside it."""
    return f"{value:.1f}"


def _points(value: float) -> str:
    text = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text if text.strip("+\N{MINUS SIGN}") != "0.0" else "0.0"
