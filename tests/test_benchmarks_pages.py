"""The tables on certified accuracy and on other words are those of the committed measurements."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pytest
import torch

from apd.bench.report import compare
from apd.bench.report.tables import make_tables
from apd.bench.runner import read_bench
from apd.errors import InputError
from benchmarks import certified, export, probe, wording
from benchmarks.figures import BEGIN, END, between_markers

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("name", "module"), [("certified", certified), ("wording", wording)])
def test_the_page_holds_what_was_measured(name: str, module: Any) -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    text = (ROOT / "docs" / f"{name}.md").read_text()
    section = text.split(BEGIN)[1].split(END)[0].strip()
    command = re.match(r"`(python -m benchmarks\.\w+ .*?)`", section)
    assert command is not None and module.page(record, command[1]) == section


def test_the_table_of_teachers_is_what_was_measured() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "probe.json").read_text())
    section = (ROOT / "docs" / "method.md").read_text().split(BEGIN)[1].split(END)[0].strip()
    assert probe.page(record) == section


def test_the_table_of_exports_is_what_was_measured_and_within_the_bound() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "export.json").read_text())
    section = (ROOT / "docs" / "deploying.md").read_text().split(BEGIN)[1].split(END)[0].strip()
    assert export.page(record) == section
    for one in record:
        for form in one["forms"].values():
            assert max(form["max_difference"].values()) < 1e-4
            assert form["same_class"] == [one["images"]] * 2
        assert one["pipeline_same_class"] == one["images"]


def test_exports_are_compared_at_every_batch_size_clean_and_attacked() -> None:
    x, harmed = torch.eye(3).repeat(3, 1), torch.eye(3).flip(0).repeat(3, 1)
    off = torch.tensor([0.0, 0.0, 2.0])

    def model(images: torch.Tensor) -> torch.Tensor:
        return images + (off if len(images) == 1 else 0)  # wrong only alone

    found = export.compared(model, x, harmed, [x, harmed])
    assert found["max_difference"]["1"] == 2 and {found["max_difference"][str(size)] for size in (7, 64)} == {0}
    assert found["same_class"] == [9, 9]
    assert export.compared(lambda images: images.flip(1), x, harmed, [x, harmed])["same_class"] == [3, 3]


def test_certified_accuracy_is_nowhere_above_that_under_attack() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "certified.json").read_text())
    points = [point for models in record.values() for one in models.values() for point in one["curve"]]
    assert len(record) == 2 and len(points) >= 18
    assert all(point["attacked"]["accuracy"] >= point["accuracy"] for point in points)


def test_a_section_is_replaced_and_a_page_without_markers_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    between_markers(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(InputError):
        between_markers(page, "new")


def few_labels() -> dict[str, str]:
    """The parts of the page's section on few labels, by their titles; the first has none."""
    section = (ROOT / "docs" / "results.md").read_text().split("## Few labels")[1].split("\n## ")[0]
    first, *others = section.split("\n### ")
    return {"": first, **dict(part.split("\n", 1) for part in others)}


def table_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_the_growth_over_unlabelled_images_is_that_of_the_committed_outcomes() -> None:
    parts = (ROOT / "docs" / "results" / "growth" / "table.md").read_text().replace("**", "").split("\n### ")
    _, *rows = table_of(few_labels()["More unlabelled images"])
    assert len(rows) == 9
    for data, images, *values in rows:
        title = f"{data}, 4 shots, {images.replace(',', '')} unlabelled images\n"
        (part,) = (part for part in parts if part.startswith(title))
        figures, differences = (table_of(half) for half in part.split("| difference to apd |"))
        measured = {name: " / ".join(found) for name, _, *found in figures}
        assert values == [
            measured["apd"],
            measured["control"],
            dict((row[0], row[-1]) for row in differences)["control"],
        ]


def test_the_means_over_shots_are_those_of_the_committed_outcomes() -> None:
    text = (ROOT / "docs" / "results" / "few-shot" / "table.md").read_text()
    found, less = {}, {}
    for part in text.split("\n### ")[1:]:
        if title := re.match(r"mean over .*, (\d+) shots\n", part):
            cells = re.findall(r"^\| ([^|]+) \|.*\| \**([\d.]+)\** \|$", part, re.M)
            found[title[1]] = dict(cells)
            apart = re.search(r"^\| control \|.*\| \**-([\d.]+) \[-([\d.]+), -([\d.]+)\] worse\** \|$", part, re.M)
            assert apart is not None
            less[title[1]] = "{0} [{2}, {1}]".format(*apart.groups())
    parts = few_labels()
    tables = [table_of(parts[name]) for name in ("", "A linear probe as teacher")]
    assert [row[0] for row in tables[0]] == ["shots", "1", "2", "4", "8", "16"]
    for head, *rows in tables:
        names = [name for name in head[1:] if "less" not in name]
        for what, *values in rows:
            shots, shared, _ = what.partition(", shared context")
            suffix = {name: f"{name}{shared}" if "," not in name else name for name in names}
            assert values[: len(names)] == [found[shots].get(suffix[name], "not run") for name in names]
    assert [row[-1] for row in tables[0][1:]] == [less[row[0]] for row in tables[0][1:]]
    assert {"1", "16, shared context"} <= {row[0] for row in tables[1]}


def test_figures_of_class_specific_prompts_are_those_of_the_committed_outcomes() -> None:
    text = (ROOT / "docs" / "results" / "class-specific" / "table.md").read_text()
    means = [part.split("\n## ")[0] for part in text.replace("*", "").split("\n### mean over ")[1:]]
    section = (ROOT / "docs" / "results.md").read_text().split("## A text context of its own")[1].split("\n### ")[0]
    tables = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in ("| method |" + table).splitlines()[2:]]
        for table in section.split("\n| method |")[1:]
    ]
    few_shot, unseen = [[row for row in table if len(row) > 1] for table in tables]
    assert (len(few_shot), len(unseen)) == (6, 2)
    for method, shots, *figures, difference in few_shot:
        (mean,) = [part for part in means if f", {shots} shot" in part and "base clean" not in part]
        lines = [line for line in mean.splitlines() if line.startswith(f"| {method} |")]
        assert lines[0] == f"| {method} | 1 | {' | '.join(figures)} |"
        assert not difference or lines[1].endswith(f"| {difference} |")
    (mean,) = [part for part in means if "base clean" in part]
    for method, _, *figures in unseen:
        assert f"| {method} | 3 | {' | '.join(figures)} |" in mean.splitlines()
    (higher,) = re.findall(r"\| apd, specific \| (\S+ \[\S+ \S+\]) as good \(apd\) \|", mean)
    assert f"The robust harmonic mean is {higher} points higher" in " ".join(section.split())


def test_figures_of_the_family_with_such_contexts_are_those_of_the_committed_outcomes() -> None:
    text = (ROOT / "docs" / "results" / "class-specific-family" / "table.md").read_text()
    means = {head: part for part in text.split("\n### mean over ")[1:] for head in [part.split(", 16 shots")[0]]}
    page = (ROOT / "docs" / "results.md").read_text()
    section = page.split("### The methods of the family with such contexts")[1].split("\n### ")[0]
    checked = 0
    for table in section.split("\n| method, ")[1:]:
        attacked = table.startswith("under AutoAttack")
        mean = means["eurosat, dtd10, cifar10, caltech101" if attacked else "caltech101, cifar10, dtd10, eurosat"]
        for row in [line for line in table.splitlines() if line.startswith("| ")]:
            method, *figures, difference = [cell.strip() for cell in row.split("|")[1:-1]]
            lines = [line.replace("*", "") for line in mean.splitlines() if line.startswith(f"| {method} |")]
            assert lines[0].endswith(f"| {' | '.join(figures)} |")
            assert not difference or lines[1].endswith(f"| {difference} |")
            checked += 1
    assert checked == 30


def test_the_readme_has_the_figures_of_the_committed_outcomes() -> None:
    text = (ROOT / "docs" / "results" / "class-specific-family" / "table.md").read_text()
    mean = text.split("\n### mean over caltech101, cifar10, dtd10, eurosat")[1].split("| difference to")[0]
    found = {name: re.sub(r"\*| ± [\d.]+|†", "", " / ".join(rest[1:])) for name, *rest in table_of(mean)}
    rows = table_of(README.split("## Does it work?")[1].split("\n- **With")[0])[1:]
    assert len(rows) == 10
    for method, *columns in rows:
        name = re.sub(r"[`†§]", "", method.replace("APD", "apd")).strip()
        name = {"zero-shot CLIP": "zero-shot", "pmg with alpha=0.2": "pmg, alpha 0.2"}.get(
            name, name.split(" with its")[0]
        )
        name = "control" if "control" in name else name
        kind, _, weight = name.partition(", ")
        more = f"{kind}+unlabelled" + (f", {weight}" if weight else "")
        for said, row in zip(columns, (name, f"{more}, auto" if "‡" in columns[1] else more), strict=True):
            assert not said or re.sub(r"[*†‡]", "", said).strip() == found[row], (method, row)


def test_figures_of_the_demo_are_those_of_the_committed_outcomes() -> None:
    text = (ROOT / "docs" / "results" / "demo" / "table.md").read_text()
    section = (ROOT / "docs" / "results.md").read_text().split("\n## The embedded demo")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(lines) > 25 and set(lines) <= set(text.splitlines())
    cells = re.findall(r"^\| (?:apd|apd\+unlabelled) \| 5 \| \D*([\d.]+) ± \S+ \| \D*([\d.]+)", text, re.M)[:2]
    page = (ROOT / "docs" / "unlabelled.md").read_text()
    assert all(f"{figure} %" in page for pair in cells for figure in pair), cells


def test_what_is_said_of_the_search_for_weights_is_in_the_committed_outcomes() -> None:
    page = " ".join(
        (ROOT / "docs" / "results.md").read_text().split("### The weights of each method")[1].split("\n## ")[0].split()
    )
    text = (ROOT / "docs" / "results" / "weights" / "table.md").read_text().replace("**", "")
    whole = "mean over eurosat, cifar10, dtd10, caltech101"
    rows = re.findall(r"\n\| ([^|]+) \| 1 \| (\S+) \| (\S+) \| (\S+) \|", text.split(f"\n### {whole}")[1])
    assert len(rows) == 22
    assert all(" / ".join(figures) in page or " | ".join(figures) in page for _, *figures in rows), rows
    for label, other in (
        ("control, clean 0.25", "control"),
        ("apd, inner teacher-kl", "apd"),
        ("pmg, alpha 0.2", "pmg"),
        ("apd+unlabelled, best, half labelled", "apd+unlabelled, best"),
    ):
        assert said_difference("weights", whole, label, other, "harmonic mean") in page, label
    for label in ("control+unlabelled, best", "trades+unlabelled, best"):
        assert said_difference("weights", "eurosat, 16", label, "apd+unlabelled, best", "apgd-ce+dlr") in page, label
    longer = "+unlabelled, best, 660 steps"
    for label, other, column, less in (
        (f"apd{longer}", "apd+unlabelled, best", "apgd-ce+dlr", False),
        (f"apd{longer}", "apd+unlabelled, best", "harmonic mean", False),
        (f"control{longer}", f"apd{longer}", "clean", True),
        (f"control{longer}", f"apd{longer}", "harmonic mean", True),
    ):
        assert said_difference("weights", whole, label, other, column, less=less) in page, (label, column)
    assert said_difference("weights", "dtd10, 16", f"control{longer}", f"apd{longer}", "harmonic mean") in page
    tested, won = ("class-specific-family", "mean over caltech101"), "apd, auto, inner teacher-kl"
    for label in ("trades", "control, clean 0.25", "pmg, alpha 0.2"):
        said = said_difference(*tested, label, won, "harmonic mean", less=True)
        assert f"by {said}" in page, said
        low, high = map(
            float, said_difference(*tested, label, won, "apgd-ce+dlr").partition("[")[2].strip("]").split(", ")
        )
        assert low < 0, (label, high)
    assert said_difference(*tested, won, "apd, auto", "harmonic mean", less=True) in page
    for column in ("clean", "harmonic mean"):
        assert said_difference(*tested, "control, clean 0.25", "control", column) in page, column
    for label in ("apd", "apd+unlabelled"):
        best = said_difference("weights", whole, f"{label}, best", label, "harmonic mean")
        assert re.sub(r"(?<![\d.+-])(?=\d)", "+", best) in page, best
    for data in ("eurosat", "dtd10", "cifar10", "caltech101"):
        said = said_difference(
            "class-specific-family", f"{data}, 16", "pmg, alpha 0.2", "apd", "harmonic mean", less=True
        )
        assert said.partition(" [")[0] in page and f"[{said.partition('[')[2]}" in page, said


def said_difference(results: str, title: str, label: str, other: str, column: str, *, less: bool = False) -> str:
    """A difference of two rows of a table of committed outcomes, as prose writes it; ``less``: how much less the first is."""
    plan, outcomes = read_bench(ROOT / "docs" / "results" / results)
    (table,) = [one for one in make_tables(plan, outcomes) if one.title.startswith(title) and label in one.rows]
    (metric,) = [one for one in table.metrics if one.name == column]
    found = compare.difference(table.rows[label], table.rows[other], metric)
    assert found is not None
    mean, low, high = (-found.mean, -found.high, -found.low) if less else (found.mean, found.low, found.high)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def test_what_is_said_of_the_best_teacher_and_of_unseen_classes_is_in_the_committed_outcomes() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    section = " ".join(page.split("### The methods of the family with such contexts")[1].split("\n### ")[0].split())
    whole = ("class-specific-family", "mean over caltech101, cifar10, dtd10, eurosat")
    for label in ("control", "trades"):
        for column in ("clean", "apgd-ce+dlr", "harmonic mean"):
            less = column != "apgd-ce+dlr"
            for more in ("", "+unlabelled"):
                said = said_difference(*whole, f"{label}{more}", f"apd{more}", column, less=less or not more)
                assert said.partition(" [")[0] in section and f"[{said.partition('[')[2]}" in section, said
    longer = "+unlabelled, 660 steps"
    for data in ("eurosat", "cifar10", "dtd10"):
        for label, other in ((f"apd{longer}", "apd+unlabelled"), (f"control{longer}", "control+unlabelled")):
            assert said_difference(whole[0], f"{data}, 16", label, other, "harmonic mean") in section, (data, label)
        said = said_difference(whole[0], f"{data}, 16", f"apd{longer}", f"control{longer}", "harmonic mean")
        assert said in section, (data, said)
    said = said_difference(*whole, "pmg+unlabelled, alpha 0.2", "apd+unlabelled", "harmonic mean", less=True)
    assert all(said.partition(" [")[0] in text and f"[{said.partition('[')[2]}" in text for text in (section, README))
    attacked = ("class-specific-family", "mean over eurosat, dtd10, cifar10, caltech101")
    for label in ("control+unlabelled", "trades+unlabelled"):
        assert said_difference(*attacked, label, "apd+unlabelled", "clean", less=True) in section, label
        less = label == "trades+unlabelled"
        assert said_difference(*attacked, label, "apd+unlabelled", "autoattack", less=less) in section, label
    for method in ("apd", "control", "trades"):
        assert said_difference(*whole, f"{method}+unlabelled", method, "harmonic mean") in section, method
    assert said_difference(*whole, "apd+unlabelled", "apd+unlabelled, auto", "harmonic mean") in section
    unseen = page.split("- **Base to new**, mean of")[1].split("\n### ")[0]
    mean = "mean over eurosat, caltech101, tiny-imagenet"
    for label in ("control", "pmg"):
        assert said_difference("family", mean, label, "apd", "H worst", less=True) in unseen


def test_figures_of_the_family_are_those_of_the_committed_outcomes() -> None:
    text = (ROOT / "docs" / "results" / "family" / "table.md").read_text()
    mean = text.split("\n### mean over cifar10, eurosat, dtd10, caltech101, 16 shots\n")[1].split("\n### ")[0]
    section = (ROOT / "docs" / "results.md").read_text().split("## The adversarial methods at equal steps")[1]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section.split("\n## ")[0].splitlines()
        if line.startswith("| ") and not line.startswith("| method")
    ]
    assert len(rows) == 17
    for method, *figures, difference in rows:
        lines = [line.replace("*", "") for line in mean.splitlines() if line.startswith(f"| {method} |")]
        assert lines[0].endswith(f"| {' | '.join(figures)} |")
        assert not difference or lines[1].endswith(f"| {difference} |")


def test_what_is_said_of_the_family_by_data_set_is_in_the_committed_outcomes() -> None:
    """Harmonic means of seed 0: what unlabelled images help, and which method is best."""
    accuracy: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader((ROOT / "docs" / "results" / "family" / "results.csv").read_text().splitlines()):
        if row["protocol"] == "few-shot" and row["seed"] == "0":
            accuracy.setdefault((row["data"], row["method"]), {})[row["attack"]] = float(row["accuracy"])
    found = {key: harmonic_mean([one["clean"], one["apgd-ce+dlr"]]) for key, one in accuracy.items()}
    pairs = [
        (data, found[data, method], found[data, f"{method}+unlabelled"])
        for data, method in found
        if (data, f"{method}+unlabelled") in found
    ]
    more, less = (Counter(data for data, *two in pairs if two[side] > two[1 - side]) for side in (1, 0))
    assert (more["cifar10"], more["caltech101"], less["eurosat"], less["dtd10"]) == (8, 6, 6, 7)
    best = {
        data: max((value, method) for (where, method), value in found.items() if where == data)[1] for data, _ in found
    }
    assert best == {"cifar10": "pmg+unlabelled", "eurosat": "trades", "dtd10": "control", "caltech101": "pmg"}
