"""Plots, and the figures of docs/benchmarks.md, from the JSON files; nothing in them is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.util.files import write_atomic
from benchmarks.cases import Row

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
CURVES = {
    "classes": "classes",
    "batch": "batch",
    "steps": "attack steps",
    "image-size": "image size (px)",
    "depth": "prompt depth",
}
NOTHING = "Nothing has been measured here yet: `make bench`, then `python -m benchmarks --page`."


def write_page(results: Path, docs: Path) -> None:
    """Put tables and plots of all results between the markers of ``docs/benchmarks.md``.

    Raises:
        InputError: a page without the markers.
    """
    page = docs / "benchmarks.md"
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise InputError(f"{page} lacks the lines {BEGIN} and {END}; put them where the figures belong.")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    found = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"), key=lambda f: f.stem)}
    # Other programs of this folder keep results of a form of their own here, which other pages show.
    suites = {
        name: rows
        for name, rows in found.items()
        if isinstance(rows, list) and all("load_before" in row for row in rows)
    }
    parts = list(headline(suites))
    for suite, rows in suites.items():
        if rows and suite != "flops":
            parts += section(suite, rows, docs / "benchmarks")
    # Those of the smallest geometry show that profiling works, and nothing else.
    parts += [file.read_text().strip() for file in sorted(results.glob("profile-*.md")) if "mini" not in file.stem]
    write_atomic(page, f"{before}{BEGIN}\n\n" + "\n\n".join(parts or [NOTHING]) + f"\n\n{END}{after}")


def headline(suites: Mapping[str, list[Row]]) -> Iterator[str]:
    """Counted operations of every step, beside the ratios that each machine has measured of it."""
    counts = suites.get("flops")
    if not counts:
        return
    machines = [rows for suite, rows in suites.items() if suite.split("-")[0] == "step" and rows]
    yield "### Operations per training step, and how many times faster it is"
    lines = [
        "| step | ours (GFLOP) | published (GFLOP) | times fewer | floor (GFLOP) | times faster, equal kernels | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in counts:
        ours, reference, floor = (_whole(row, f"{side}_gflop") for side in ("ours", "reference", "floor"))
        cells = [ours, reference, _cell(row, "times_fewer"), floor]
        ratios = ("ratio_reference_our_kernels", "ratio_reference")
        cells += [_by_machine(machines, row["name"], ratio) for ratio in ratios]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    yield "\n".join(lines)
    yield "In brackets, the machine that measured it:"
    yield "\n".join(f"{number}. {_circumstances(rows)}" for number, rows in enumerate(machines, 1))


def _whole(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else f"{value:,.0f}"


def _by_machine(machines: Sequence[list[Row]], name: str, ratio: str) -> str:
    """The measured ratios of a row, the lowest first, each with its machine's number."""
    found = [
        (row[ratio], number)
        for number, rows in enumerate(machines, 1)
        for row in rows
        if row["name"] == name and row.get(ratio) is not None and not row["extrapolated"]
    ]
    return ", ".join(f"{value:.3g} ({number})" for value, number in sorted(found))


def _circumstances(rows: list[Row]) -> str:
    known = next((row["rate"] for row in rows if row.get("rate")), None)
    rate = (
        f"; a large product runs at {known['default']:.0f} GFLOP/s by default, {known['ours']:.0f} on our kernels"
        if known
        else ""
    )
    return rows[0]["machine"] + rate + "."


def section(suite: str, rows: list[Row], pictures: Path) -> Iterator[str]:
    """Heading, circumstances, table and plot of one file."""
    yield f"### {suite}"
    loads = [row["load_before"] for row in rows]
    yield f"{rows[0]['machine']}; load of the machine before each row {min(loads):g} to {max(loads):g}."
    yield table(rows)
    if suite.startswith("growth"):
        yield from growth_plot(suite, rows, pictures)
    elif any(row["ratio_reference"] or row["ratio_floor"] for row in rows):
        yield ratio_plot(suite, rows, pictures)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with the columns that any of them fills."""
    extra = sorted(
        {key for row in rows for key, value in row.items() if key not in _TOLD and isinstance(value, int | float)}
    )
    names = [
        key
        for key in ("ours_s", "reference_s", "floor_s", "ratio_reference", "ratio_floor", *extra)
        if any(row.get(key) is not None for row in rows)
    ]
    titles = [*map(_title, names), "rounds"]
    lines = ["| name | " + " | ".join(titles) + " | |", "|---" * (len(titles) + 2) + "|"]
    for row in rows:
        cells = [*(_cell(row, name) for name in names), _rounds(row)]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" | {_remark(row)} |")
    return "\n".join(lines)


_TOLD = {"name", "ours_s", "reference_s", "floor_s", "ratio_reference", "ratio_floor", "extrapolated", "load_before"}
# Their ratios say it.
_TOLD |= {"floor_default_kernels_s", "reference_our_kernels_s"}


def _title(name: str) -> str:
    return re.sub(r"_s$", " (s)", name).replace("_", " ")


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    ends = (row.get("spread") or {}).get(name)
    return f"{value:.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else "")


def _rounds(row: Row) -> str:
    counts: dict[str, int] = row.get("rounds") or {}
    return " / ".join(str(counts[side]) for side in ("ours", "reference", "floor") if counts.get(side))


def _remark(row: Row) -> str:
    remarks = ["quick"] if row["effort"] == "quick" else []
    if row["extrapolated"]:
        remarks.append("extrapolated: " + ", ".join(row["fitted"]))
    if row.get("out_of_memory"):
        remarks.append("out of memory")
    return "; ".join(remarks)


def growth_plot(suite: str, rows: list[Row], pictures: Path) -> Iterator[str]:
    """Seconds and peak memory along each curve."""
    for curve, title in CURVES.items():
        known = [
            row
            for row in rows
            if row["ours_s"] is not None and row["name"].startswith((f"growth-{curve}-", "growth-base"))
        ]
        key = curve.replace("-", "_")
        points = sorted((row["settings"][key], row["ours_s"], row["peak_mb"]) for row in known)
        if len(points) < 2:
            continue
        figure, (left, right) = _figure(2)
        sizes, seconds, memory = zip(*points, strict=True)
        for axes, values, label in ((left, seconds, "seconds a step"), (right, memory, "peak memory (MB)")):
            axes.plot(sizes, values, marker="o")
            axes.set(xlabel=title, ylabel=label)
            if sizes[-1] > 30 * sizes[0]:
                axes.set(xscale="log", yscale="log")
        yield _save(figure, pictures / f"{suite}-{curve}.svg", f"time and memory by {title}")


def ratio_plot(suite: str, rows: list[Row], pictures: Path) -> str:
    """Bars: how many times faster than the reference, and how far above the floor; hollow where extrapolated."""
    figure, sides = _figure(2, height=1 + 0.28 * len(rows))
    titles = ("reference / ours", "ours / floor")
    for axes, key, title in zip(sides, ("ratio_reference", "ratio_floor"), titles, strict=True):
        shown = [row for row in reversed(rows) if row[key] is not None]
        bars = axes.barh([row["name"] for row in shown], [row[key] for row in shown], edgecolor="C0")
        for bar, row in zip(bars, shown, strict=True):
            bar.set_facecolor("none" if row["extrapolated"] else "C0")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xlabel=title)
    return _save(figure, pictures / f"{suite}.svg", f"ratios of {suite}; hollow bars are extrapolated")


def _figure(columns: int, height: float = 3.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _save(figure: Any, file: Path, text: str) -> str:
    import matplotlib

    file.parent.mkdir(parents=True, exist_ok=True)
    # The same figures give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):
        figure.savefig(file, metadata={"Date": None})
    return f"![{text}]({file.parent.name}/{file.name})"
