"""The page of interactive charts, made from the results that are kept in docs/results."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import plotly.graph_objects as go

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
HIGHLIGHTED = {"zero-shot": "#d95f02", "apd": "#1b9e77", "apd+unlabelled": "#7570b3"}
OTHER = "#8f97a8"
THIN = {"thickness": 1, "width": 3, "color": OTHER}
CLEAN, ATTACKED = "clean", "apgd-ce+dlr"
Row = dict[str, str]
Means = dict[str, dict[str, tuple[float, float, int]]]
"""Method to attack to mean, standard deviation and number of seeds."""


def plotly_source() -> str:
    """The charts' library, kept with the site so that nothing is fetched."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def charts_page() -> str:
    """All charts as one page of Markdown with HTML."""
    demo = rows("demo", lambda row: row["n"] != "897")
    parts = [
        "# Charts",
        "The figures of [Accuracy](results.md), to explore: point at a mark for its numbers, drag to zoom, double-click to "
        "go back. Each chart is drawn from the file named under it when this site is built. All are from "
        "small images (32 px), on CPUs.",
        '<script src="assets/plotly.min.js"></script>',
        "## The built-in digits",
        "Higher is better. Bars are means over seeds, with the standard deviation.",
        bars("digits", means(demo), "Digits, 16 labelled images per class, eps 14/255", "demo"),
        "## Clean against robust",
        "Up and to the right is better: right on clean images, and right under attack. Every method and zero-shot CLIP, "
        "means over seeds.",
    ]
    for data in ("cifar10", "caltech101", "dtd10"):
        found = means(rows("testbed", lambda row, data=data: (row["data"], row["protocol"]) == (data, "few-shot")))
        parts.append(scatter(f"few-shot-{data}", found, f"{data}, few-shot", "testbed"))
    parts += ["## Classes never trained on", "Prompts trained on half of the classes, tested on the other half."]
    for data in ("caltech101", "tiny-imagenet"):
        found = means(rows("testbed", lambda row, data=data: (row["data"], row["split"]) == (data, "new")))
        parts.append(scatter(f"new-{data}", found, f"{data}, new classes", "testbed"))
    parts += [
        "## What each part does",
        "One thing changed at a time; one training per mark, so a few points mean nothing.",
    ]
    parts.append(
        scatter("ablations", means(rows("ablations", lambda row: True)), "cifar10, variants of APD", "ablations")
    )
    parts.append('<script src="assets/charts.js"></script>')
    return "\n\n".join(parts) + "\n"


def rows(folder: str, wanted: Callable[[Row], bool]) -> list[Row]:
    """The rows of a kept table of results."""
    with (RESULTS / folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if wanted(row)]


def means(found: Iterable[Row]) -> Means:
    """Mean and standard deviation over seeds of the runs that were attacked by the cascade, clean and under it."""
    values: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    listed = list(found)
    # A run may be there twice: on many images under the cascade, on fewer under AutoAttack. The former's clean row is meant.
    sizes = {(row["run"], row["split"]): row["n"] for row in listed if row["attack"] == ATTACKED}
    for row in listed:
        if row["attack"] in (CLEAN, ATTACKED) and sizes.get((row["run"], row["split"])) == row["n"]:
            values[row["method"]][row["attack"]][row["seed"]] = float(row["accuracy"])
    return {
        method: {
            attack: (
                statistics.mean(each.values()),
                statistics.stdev(each.values()) if len(each) > 1 else 0.0,
                len(each),
            )
            for attack, each in attacks.items()
        }
        for method, attacks in values.items()
    }


def bars(name: str, found: Means, title: str, source: str) -> str:
    """Clean and attacked accuracy as bars per method."""
    figure = go.Figure()
    for attack, words, colour in ((CLEAN, "clean", "#8da0cb"), (ATTACKED, "under attack", "#1b9e77")):
        figure.add_bar(
            x=list(found),
            y=[each[attack][0] for each in found.values()],
            error_y={"type": "data", "array": [each[attack][1] for each in found.values()]},
            name=words,
            marker_color=colour,
            hovertemplate="%{x}, " + words + ": %{y:.1f} %<extra></extra>",
        )
    figure.update_layout(barmode="group", yaxis={"title": "accuracy %", "range": [0, 100]})
    return embedded(name, figure, title, source, spoken(found))


def scatter(name: str, found: Means, title: str, source: str) -> str:
    """Clean against attacked accuracy, one mark per method."""
    figure = go.Figure()
    shown = {method: each for method, each in found.items() if {CLEAN, ATTACKED} <= set(each)}
    figure.add_scatter(
        x=[each[CLEAN][0] for each in shown.values()],
        y=[each[ATTACKED][0] for each in shown.values()],
        error_x={"type": "data", "array": [each[CLEAN][1] for each in shown.values()], **THIN},
        error_y={"type": "data", "array": [each[ATTACKED][1] for each in shown.values()], **THIN},
        # With every name the names would cover each other; the others are told when one points at a mark.
        text=[method if method in HIGHLIGHTED or each[CLEAN][2] > 1 else "" for method, each in shown.items()],
        customdata=[[method, each[CLEAN][2]] for method, each in shown.items()],
        mode="markers+text",
        textposition="top center",
        marker={"size": 11, "color": [HIGHLIGHTED.get(method, OTHER) for method in shown]},
        hovertemplate="%{customdata[0]}<br>clean %{x:.1f} %<br>attacked %{y:.1f} %<br>seeds %{customdata[1]}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": "clean accuracy %"}, yaxis={"title": "accuracy under attack %"}, showlegend=False
    )
    return embedded(name, figure, title, source, spoken(shown))


def spoken(found: Means) -> str:
    """A chart in words."""
    return "; ".join(
        f"{method}: " + ", ".join(f"{attack} {mean:.1f} %" for attack, (mean, _, _) in each.items())
        for method, each in found.items()
    )


def embedded(name: str, figure: go.Figure, title: str, source: str, words: str) -> str:
    """A chart for the page, with its title, its words for those who do not see it, and its source."""
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        height=400,
        legend={"orientation": "h", "y": 1.1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": OTHER, "activecolor": HIGHLIGHTED["apd"]},
    )
    chart = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"chart-{name}",
        config={"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"]},
    )
    label = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    drawn = f'<div class="chart" role="img" aria-label="{title}. {label}">{chart}</div>'
    return f"**{title}**\n\n{drawn}\n\nFrom `docs/results/{source}/results.csv`."
