"""The tables for people: Markdown and LaTeX, from the plan and the outcomes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from apd.bench.job import Outcome
from apd.bench.plan import Plan, TableRow
from apd.bench.protocols import PROTOCOLS, EvalSpec, Metric
from apd.bench.report.compare import Cell, MeanStd, Seeds, difference, has, mean_std, shared_seeds
from apd.bench.report.published import published_markdown
from apd.bench.report.rows import row_evals
from apd.evaluation.statistics import AS_GOOD_MARGIN
from apd.util.text import markdown as safe
from apd.util.text import printable

MISSING = "-"
UNRELIABLE = "†"
"""Marks a figure whose health checks failed."""
_LATEX = {mark: f"\\{mark}" for mark in "&%_#${}"} | {
    "\\": r"\textbackslash{}",
    UNRELIABLE: r"$^\dagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


@dataclass(frozen=True)
class Table:
    """Methods on one data set (or the mean over several) under one protocol.

    Args:
        protocol: its name.
        title: data and shots.
        note: eps and number of images.
        metrics: the columns.
        rows: each method's runs, data set by data set, by its label.
        against: the method that all are compared with; None: the best.
        versions: versions of apd that made each method's outcomes.
        members: the first planned row of each data set: what data, shots, eps and unlabelled images it is about.
    """

    protocol: str
    title: str
    note: str
    metrics: tuple[Metric, ...]
    rows: Mapping[str, tuple[Seeds, ...]]
    against: str | None = None
    versions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    members: tuple[TableRow, ...] = ()

    def column(self, metric: Metric) -> dict[str, MeanStd]:
        """Compute a column, without the methods that lack something of it."""
        return {label: mean_std(sets, metric) for label, sets in self.rows.items() if _complete(sets, metric)}

    def ranked(self, metric: Metric) -> list[str]:
        """Rank all methods by this metric, the best first and the earlier row of equal ones."""
        column = self.column(metric)
        return sorted(column, key=lambda label: -column[label].mean)

    @property
    def seeds(self) -> list[int | None]:
        """The most seeds that any method has; ``[None]`` if none depends on a seed."""
        seeded = [seeds for seeds in map(shared_seeds, self.rows.values()) if seeds != [None]]
        return max(seeded, key=len, default=[None])

    @property
    def contenders(self) -> list[str]:
        """Methods with these seeds, and those that depend on none: a best one is only chosen among equal seeds."""
        return [label for label, sets in self.rows.items() if shared_seeds(sets) in ([None], self.seeds)]

    def ranked_contenders(self, metric: Metric) -> list[str]:
        """Rank the contenders by this metric, the best first."""
        return [label for label in self.ranked(metric) if label in self.contenders]

    def best(self, metric: Metric) -> list[str]:
        """The contenders with the best value; several if they are equal."""
        column, ranked = self.column(metric), self.ranked_contenders(metric)
        return [label for label in ranked if column[label].mean == column[ranked[0]].mean]

    def reasons(self, label: str, metric: Metric) -> list[str]:
        """Why a method's figure cannot be trusted: what the health checks say of any attack behind it."""
        attacked = [spec for spec, attack in metric.parts if attack != "clean"]
        cells = (cell for seeds in self.rows[label] for cell in seeds.values())
        found = (cell[spec] for cell in cells for spec in attacked if spec in cell)
        return [reason for one in found if one.reliable is False for reason in one.because]

    @property
    def main(self) -> Metric:
        """The metric that ranks the methods for the second stage."""
        return next(metric for metric in self.metrics if metric.main)


def make_tables(plan: Plan, outcomes: Mapping[str, Outcome]) -> list[Table]:
    """Make a table per protocol, data set and number of shots, and means for protocols with several data sets."""
    groups: dict[tuple[object, ...], list[TableRow]] = {}
    for row in plan.rows:
        groups.setdefault(row.table, []).append(row)
    single = [(rows, _table(rows, outcomes)) for rows in groups.values()]
    tables = [table for _, table in single] + list(_means(single))
    return [replace(table, against=plan.against if plan.against in table.rows else None) for table in tables]


def best_methods(
    plan: Plan, outcomes: Mapping[str, Outcome], best: int, protocols: Sequence[str]
) -> dict[tuple[object, ...], list[str]]:
    """Find the ``best`` methods of each table of these protocols, by its main metric."""
    found = {}
    for row in plan.rows:
        if row.protocol in protocols and row.table not in found:
            table = _table([other for other in plan.rows if other.table == row.table], outcomes)
            found[row.table] = table.ranked(table.main)[:best]
    return found


def _table(lines: Sequence[TableRow], outcomes: Mapping[str, Outcome]) -> Table:
    first, protocol = lines[0], PROTOCOLS[lines[0].protocol]
    metrics = list(protocol.metrics(list(first.evals.values())))
    final = next((list(row.final.values()) for row in lines if row.final), [])
    if final:
        columns = [metric for metric in protocol.metrics(final) if metric.main]
        metrics += [replace(metric, name=f"{metric.name} (final)") for metric in columns]
    cells: dict[str, dict[int | None, Cell]] = {}
    versions: dict[str, frozenset[str]] = {}
    for row in lines:
        cell = row_evals(row, outcomes)
        if all(spec.name in cell for spec in row.evals.values()):
            cells.setdefault(row.method, {})[row.seed] = cell
            made = outcomes[row.job].made_with([*row.evals, *row.final])
            versions[row.method] = versions.get(row.method, frozenset()) | made
    shots = "all training images" if first.shots == "all" else "1 shot" if first.shots == 1 else f"{first.shots} shots"
    note = _note(list(first.evals.values()))
    if final:
        note += f"; final: {_note(final)}"
    rows = {label: (seeds,) for label, seeds in cells.items()}
    title = f"{first.data}, {shots}{_unlabelled(first)}"
    return Table(first.protocol, title, note, tuple(metrics), rows, versions=versions, members=(first,))


def _unlabelled(row: TableRow) -> str:
    return "" if row.unlabelled is None else f", {row.unlabelled} unlabelled images"


def _note(evals: Sequence[EvalSpec]) -> str:
    budgets = dict.fromkeys(spec.budget for spec in evals)
    return f"{', '.join(evals[0].attacks)} at eps {', '.join(budgets)} on {evals[0].images}"


def _means(single: Sequence[tuple[list[TableRow], Table]]) -> Iterator[Table]:
    """Average over data sets whose tables have the same columns and seeds."""
    for members in _alike(single):
        names = [row.data for row, _ in members]
        shots = " or ".join(dict.fromkeys(str(row.shots) for row, _ in members))
        tables = [table for _, table in members]
        labels = [label for label in tables[0].rows if all(label in table.rows for table in tables)]
        rows = {label: tuple(table.rows[label][0] for table in tables) for label in labels}
        title = f"mean over {', '.join(names)}, {shots} shots{_unlabelled(members[0][0])}"
        versions = {label: frozenset().union(*(table.versions[label] for table in tables)) for label in labels}
        note = "; ".join(dict.fromkeys(table.note for table in tables))
        if rows:
            yield Table(
                tables[0].protocol,
                title,
                note,
                tables[0].metrics,
                rows,
                versions=versions,
                members=tuple(row for row, _ in members),
            )


def _alike(single: Sequence[tuple[list[TableRow], Table]]) -> Iterator[list[tuple[TableRow, Table]]]:
    """Group the tables that can be averaged; if a data set has several, by shots, unlabelled images and what is attacked how."""
    groups: dict[tuple[object, ...], list[tuple[TableRow, Table]]] = {}
    for rows, table in single:
        if table.rows:
            seeds = frozenset(row.seed for row in rows)
            groups.setdefault((table.protocol, table.metrics, seeds), []).append((rows[0], table))
    for members in groups.values():
        curve = len({row.data for row, _ in members}) < len(members)
        parts: dict[object, list[tuple[TableRow, Table]]] = {}
        for row, table in members:
            how = tuple((spec.attacks, spec.limit) for spec in row.evals.values())
            parts.setdefault((row.shots, row.unlabelled, how) if curve else None, []).append((row, table))
        yield from (part for part in parts.values() if len(part) > 1)


def _complete(sets: Sequence[Seeds], metric: Metric) -> bool:
    return bool(shared_seeds(sets)) and all(has(cells, metric) for cells in sets)


def markdown(name: str, tables: Sequence[Table], image_size: int | None = None) -> str:
    """Format all tables as Markdown, each protocol with the published numbers of models at this image size."""
    lines = [f"# {safe(name)}", ""]
    for protocol in dict.fromkeys(table.protocol for table in tables):
        lines += [
            f"## {protocol}",
            "",
            f"{PROTOCOLS[protocol].summary[0].upper()}{PROTOCOLS[protocol].summary[1:]}.",
            "",
        ]
        for table in tables:
            if table.protocol == protocol and table.rows:
                lines += [
                    f"### {safe(table.title)}",
                    "",
                    f"Accuracy in percent; {table.note}.",
                    "",
                    *_values(table),
                    "",
                ]
                notes = table_notes(table)
                lines += [safe(" ".join(notes)), ""] if notes else []
                lines += [*_differences(table), ""]
        # Published numbers stand beside ours, never alone.
        if any(table.rows for table in tables if table.protocol == protocol):
            lines += published_markdown(protocol, image_size)
        else:
            lines += ["No run of this protocol has come to its end.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _values(table: Table) -> list[str]:
    head = ["method", "seeds", *(safe(metric.name) for metric in table.metrics)]
    lines = [_row(head), "|" + "---|" * len(head)]
    rows = shown_cells(table, lambda text: f"**{text}**", " ± ", UNRELIABLE)
    return lines + [_row([safe(label), *cells]) for label, *cells in rows]


def shown_cells(table: Table, bold: Callable[[str], str], plus_minus: str, unreliable: str) -> Iterator[list[str]]:
    """Each row of a table as text: method, seeds, and a cell for each metric.

    The best are marked by ``bold``, those that cannot be trusted by ``unreliable``.
    """
    columns = [(table.column(metric), table.best(metric)) for metric in table.metrics]
    for label, sets in table.rows.items():
        cells = []
        for metric, (figures, best) in zip(table.metrics, columns, strict=True):
            text = _mean(figures[label], plus_minus) if label in figures else MISSING
            text += unreliable if label in figures and table.reasons(label, metric) else ""
            cells.append(bold(text) if label in best else text)
        yield [label, _seeds(sets), *cells]


def _seeds(sets: Sequence[Seeds]) -> str:
    """Number of seeds behind the values, and of how many if a mean cannot use them all."""
    most = max((len(cells) for cells in sets if None not in cells), default=0)
    if not most:
        return "any"
    shared = len(shared_seeds(sets))
    return str(shared) if shared == most else f"{shared} of {most}"


def table_notes(table: Table) -> list[str]:
    """Notes that a reader needs if the values differ in seeds or versions."""
    notes = []
    others = [label for label in table.rows if label not in table.contenders]
    if others:
        seeds = ", ".join(map(str, table.seeds))
        notes.append(f"Bold: the best with seeds {seeds}; {', '.join(others)}: other seeds, left out of this contest.")
    if any(" of " in _seeds(sets) for sets in table.rows.values()):
        notes.append("A mean over data sets rests on the seeds that all of them have.")
    for label in table.rows:
        reasons = dict.fromkeys(reason for metric in table.metrics for reason in table.reasons(label, metric))
        if reasons:
            notes.append(f"{UNRELIABLE} {label} is not reliable, because {'; '.join(reasons)}.")
    made = sorted(frozenset().union(*table.versions.values()))
    if len(made) > 1:
        by = (f"{v} ({', '.join(label for label in table.rows if v in table.versions[label])})" for v in made)
        notes.append(f"Made with several versions of apd: {', '.join(by)}.")
    return notes


def _mean(found: MeanStd, plus_minus: str) -> str:
    return f"{found.mean:.1f}" + (f"{plus_minus}{found.deviation:.1f}" if found.deviation is not None else "")


def _differences(table: Table) -> list[str]:
    """The comparison as Markdown."""
    found = compared(table, safe, lambda text: f"**{text}**")
    if found is None:
        return []
    head, rows, reading = found
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows), "", reading]


def compared(
    table: Table, named: Callable[[str], str], bold: Callable[[str], str]
) -> tuple[list[str], list[list[str]], str] | None:
    """Compare each method with the one that is asked for; else with the best, and the best with the runner-up.

    Args:
        table: the methods.
        named: makes a name safe to show.
        bold: marks the best.

    Returns:
        Column titles, rows, and how to read them; None where there is nothing to compare.
    """
    shown = [m for m in table.metrics if (m.main or table.against) and len(table.column(m)) > 1]
    if not shown:
        return None
    other = table.against or "the best (the best: to the runner-up)"
    head = [f"difference to {named(other)}", *(named(metric.name) for metric in shown)]
    labels = [label for label in table.rows if label != table.against]
    rows = [[named(label), *(_against(table, label, metric, named, bold) for metric in shown)] for label in labels]
    return head, rows, " ".join(_reading(table, shown, named))


def _reading(table: Table, shown: Sequence[Metric], named: Callable[[str], str]) -> Iterator[str]:
    """Explain the differences: what they are taken over, what the words mean, and which of equals is the best."""
    yield "Paired over images and the seeds that both methods have; 95 % bootstrap interval over images, not over trainings."
    yield (
        f"Better: it lies above 0; else as good: its lower end is above -{AS_GOOD_MARGIN:g} "
        "points; else worse: it lies below 0; else undecided."
    )
    if len(table.contenders) < len(table.rows):
        yield "With other seeds it is not the difference of the figures above."
    if table.against:
        return
    for metric in shown:
        best = table.best(metric)
        if len(best) > 1:
            names = [named(label) for label in best]
            yield f"Best in {metric.name} are {' and '.join(names)}, with equal figures; {names[0]} stands for the best here."


def _against(table: Table, label: str, metric: Metric, named: Callable[[str], str], bold: Callable[[str], str]) -> str:
    best, runner_up, *_ = *table.ranked_contenders(metric), None, None
    other = table.against or (runner_up if label == best else best)
    known = table.column(metric)
    if label not in known or other is None or other not in known:
        return MISSING
    found = difference(table.rows[label], table.rows[other], metric)
    if found is None:
        return "not paired"
    text = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}] {found.verdict}"
    return bold(f"{text} ({named(other)})") if label == best and not table.against else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(tables: Sequence[Table]) -> str:
    """Format all tables as LaTeX with the package booktabs."""
    return "\n".join(line for table in tables if table.rows for line in _latex(table)) + "\n"


def _latex(table: Table) -> Iterator[str]:
    head = ["method", "seeds", *(metric.name for metric in table.metrics)]
    yield r"\begin{table}"
    yield r"\centering"
    caption = " ".join([f"{table.protocol}: {table.title}. Accuracy in percent; {table.note}.", *table_notes(table)])
    yield rf"\caption{{{_escaped(caption)}}}"
    yield rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    yield r"\toprule"
    yield " & ".join(map(_escaped, head)) + r" \\"
    yield r"\midrule"
    for label, *cells in shown_cells(table, lambda text: rf"\textbf{{{text}}}", r" $\pm$ ", r"$^\dagger$"):
        yield " & ".join([_escaped(label), *cells]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"


def _escaped(text: str) -> str:
    # After a line break a bracket or a star would be its argument.
    apart = "{}" if text.startswith(("[", "*")) else ""
    return apart + "".join(_LATEX.get(character, character) for character in printable(text))
