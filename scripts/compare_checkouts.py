#!/usr/bin/env python3
"""Compare two checkouts of this project: a redesign must not change prompts, outcomes, plan ids or old folders.

    python scripts/compare_checkouts.py OLD NEW --keep /tmp/baseline
    python scripts/compare_checkouts.py OLD NEW --only plans,prompts --testbed ../shared/testbed
    python scripts/compare_checkouts.py OLD NEW --only time

Both run through their command line, on one core with one thread, so that modules may move. Exit code 0: all equal or
skipped; 1: something differs or failed.

- plans: lines, job ids and view hashes of every ``docs/results/*/plan.json`` of OLD, computed again in both (no training). The
  second stage (``final``) depends on outcomes and is left out.
- prompts: short trainings of every method and of many settings; prompts byte by byte, and the settings in config.yaml.
- evaluation: accuracies and outcomes by sample, for some of these runs. Keys that NEW adds are told, and count as equal.
- folders: NEW evaluates, predicts with, resumes and continues what OLD has written.
- time: seconds of a training step and of an evaluation, alternating, with the ratio new/old.

``--keep`` stores OLD's runs under a hash of its sources (and of what is run), so that further comparisons run NEW alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from checkouts import (
    EVALUATED,
    PLANNER,
    Job,
    Side,
    bench,
    evaluation,
    fingerprint,
    predict,
    run_folder,
    training,
    trainings,
)

SECTIONS = ("plans", "prompts", "evaluation", "folders")
VOLATILE = {"versions", "seconds", "seconds_earlier", "message", "apd"}
"""Keys that may differ: what ran when, and sentences for people."""
ONLY_NEW, ADDED = ": only new", "added: "


@dataclass(frozen=True)
class Row:
    """One thing compared: ``status`` is equal, differs, failed or skipped."""

    section: str
    name: str
    status: str
    detail: str = ""


def last_line(answer: Mapping[str, Any]) -> str:
    """Exit code and the last thing said of a command that failed."""
    lines = (answer["err"] or answer["out"]).strip().splitlines() or [""]
    return f"exit code {answer['code']}: {lines[-1][:160]}"


def judge(section: str, name: str, answers: Mapping[str, Mapping[str, Any]], compare: Callable[[], list[str]]) -> Row:
    """A row for the first command that failed, by checkout, or else for the differences that ``compare`` finds."""
    bad = [f"{side}: {last_line(answer)}" for side, answer in answers.items() if answer["code"]]
    return tell(Row(section, name, "failed", "; ".join(bad)) if bad else verdict(section, name, compare()))


def by_name(value: Any) -> Any:
    """A list of entries that have names, as a dictionary: an entry may be added anywhere."""
    named = isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value)
    return {item["name"]: item for item in value} if named else value


def difference(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, apart from volatile keys.

    >>> difference({"a": [1, 2], "seconds": 3}, {"a": [1, 4], "b": 0})
    ['a.1: 2 -> 4', 'b: only new']
    """
    old, new = by_name(old), by_name(new)
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            if key in VOLATILE:
                continue
            place = f"{at}.{key}" if at else str(key)
            if key in old and key in new:
                found += difference(old[key], new[key], place)
            else:
                found.append(f"{place}: only old" if key in old else f"{place}{ONLY_NEW}")
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in difference(a, b, f"{at}.{i}")]
    return [] if old == new else [f"{at}: {str(old)[:40]} -> {str(new)[:40]}"]


def allow_additions(found: Sequence[str]) -> list[str]:
    """Mark keys that only NEW has: an addition is told, but it does not count as a difference."""
    return [f"{ADDED}{line.removesuffix(ONLY_NEW)}" if line.endswith(ONLY_NEW) else line for line in found]


def verdict(section: str, name: str, found: Sequence[str]) -> Row:
    """A row for a list of differences."""
    found = sorted(found, key=lambda line: line.startswith(ADDED))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    status = "differs" if found and not found[0].startswith(ADDED) else "equal"
    return Row(section, name, status, "; ".join(found[:3]) + more)


def compare_runs(old: Path, new: Path) -> list[str]:
    """Prompts byte by byte, and the settings."""
    import yaml

    files = [run / "prompts.safetensors" for run in (old, new)]
    a, b = (hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.exists() else "none" for file in files)
    found = [] if a == b != "none" else [f"prompts {a} -> {b}"]
    settings = [yaml.safe_load((run / "config.yaml").read_text()) for run in (old, new)]
    return found + allow_additions([f"config.yaml: {line}" for line in difference(*settings)])


def answered(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between the JSON that two commands print."""
    return allow_additions(difference(json.loads(old["out"]), json.loads(new["out"])))


def outcomes(run: Path) -> dict[str, Any]:
    """Outcomes by file, each by sample; other lines say what the outcomes took."""
    files = {file.name: map(json.loads, file.read_text().splitlines()) for file in (run / "results").glob("*.jsonl")}
    return {name: {row["id"]: row for row in rows if "id" in row} for name, rows in files.items()}


def tell(row: Row) -> Row:
    """Show a row that is not equal at once."""
    if row.status != "equal":
        print(f"{row.status}: {row.section}: {row.name}: {row.detail}", file=sys.stderr, flush=True)
    return row


def compare_plans(old: Side, new: Side, _: Path | None) -> list[Row]:
    """Plan ids, computed in both checkouts, against those that OLD has committed."""
    names = sorted(file.parent.name for file in (old.tree / "docs" / "results").glob("*/plan.json"))
    sides = {}
    for side in (old, new):
        files = {name: str(side.tree / "suites" / f"{name}.yaml") for name in names}
        answer = json.loads(side.python_code(PLANNER, list(files.values())).splitlines()[-1])
        sides[side.name] = {name: answer[file] for name, file in files.items()}
    return [tell(compare_plan(name, old.tree, sides["old"][name], sides["new"][name])) for name in names]


def plan_line(entry: Mapping[str, Any]) -> str:
    """An entry of a plan without its second stage."""
    return json.dumps({key: value for key, value in entry.items() if key != "final"}, sort_keys=True)


def compare_plan(name: str, tree: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> Row:
    """One suite; methods whose model or data OLD does not find either are left out, and named."""
    record = json.loads((tree / "docs" / "results" / name / "plan.json").read_text())
    if "" in old["skipped"]:
        return Row("plans", name, "skipped", old["skipped"][""])
    committed = {plan_line(e) for e in record["entries"] if e["method"] not in old["skipped"]}
    if not committed:
        return Row("plans", name, "skipped", next(iter(old["skipped"].values())))
    found = [f"{method}: {why}" for method, why in new["skipped"].items() if method not in old["skipped"]]
    for side, rows in (("old", old["rows"]), ("new", new["rows"])):
        made = set(map(plan_line, rows))
        found += [f"{side} does not plan {row}" for row in sorted(committed - made)]
        found += [f"{side} also plans {row}" for row in sorted(made - committed)]
    if found:
        return verdict("plans", name, found)
    left_out = f"; left out: {', '.join(old['skipped'])}" if old["skipped"] else ""
    return Row("plans", name, "equal", f"{len(committed)} lines{left_out}")


def names(side: Side) -> list[str]:
    """The methods of a checkout."""
    answer = side.do([Job("methods", ("list", "methods", "--json"))])["methods"]
    if answer["code"]:
        raise ChildProcessError(f"{side.name}: apd list methods: {last_line(answer)}")
    return [method["name"] for method in json.loads(answer["out"])]


def compare_prompts(old: Side, new: Side, testbed: Path | None) -> list[Row]:
    """Short trainings in both checkouts."""
    known = [names(side) for side in (old, new)]
    rows = [tell(verdict("prompts", "names of methods", sorted(set(known[0]) ^ set(known[1]))))]
    jobs = trainings(known[0], testbed)
    a, b = old.do(jobs.values()), new.do(jobs.values())
    for name in jobs:
        compare = partial(compare_runs, old.run(name), new.run(name))
        rows.append(judge("prompts", name, {"old": a[name], "new": b[name]}, compare))
    return rows


def compare_evaluations(old: Side, new: Side, testbed: Path | None) -> list[Row]:
    """Some runs, each evaluated by the checkout that made it."""
    jobs = trainings(names(old), testbed)
    attacks = {name: attack for name, attack in EVALUATED.items() if name in jobs}
    todo = [job for name, attack in attacks.items() for job in (jobs[name], evaluation(run_folder(name), attack))]
    a, b = old.do(todo), new.do(todo)
    rows = []
    for name, attack in attacks.items():
        key = f"evaluate {run_folder(name)}"
        both = {"old": a[key], "new": b[key]}
        rows.append(judge("evaluation", f"{name}: accuracies, {attack}", both, partial(answered, a[key], b[key])))
        samples = partial(difference, outcomes(old.run(name)), outcomes(new.run(name)))
        rows.append(judge("evaluation", f"{name}: outcomes by sample", both, samples))
    return rows


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of every outcome and prompt below a folder."""
    files = [file for kind in ("*.jsonl", "prompts.safetensors", "outcomes/*.json") for file in folder.rglob(kind)]
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
    }


def taken_over(old: Side, new: Side, folder: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """A copy of a folder of OLD in NEW's, and what is in it."""
    shutil.copytree(old.root / folder, new.root / "old" / folder, dirs_exist_ok=True)
    return f"old/{folder}", snapshot(new.root / "old" / folder)


def changed(before: Mapping[str, object], folder: Path, *, more: bool = False) -> list[str]:
    """Files that were written again, are gone or, unless ``more`` are expected, are new."""
    after = snapshot(folder)
    names = before if more else sorted(before.keys() | after.keys())
    return [
        f"{name} was {'written' if name in after else 'removed'}"
        for name in names
        if after.get(name) != before.get(name)
    ]


def compare_folders(old: Side, new: Side, _: Path | None) -> list[Row]:
    """What NEW makes of folders that OLD has written."""
    return [*check_run(old, new), check_resumed(old, new), *check_bench(old, new)]


def check_run(old: Side, new: Side) -> list[Row]:
    """A finished run: NEW finds its outcomes again, predicts the same, and measures the same anew."""
    from PIL import Image

    images = [f"{angle}.png" for angle in (0, 90, 180)]
    for side in (old, new):
        for angle, image in zip((0, 90, 180), images, strict=True):
            Image.linear_gradient("L").rotate(angle).resize((32, 32)).save(side.root / image)
    run = run_folder("apd")
    kept = old.do([training("apd", method="apd"), evaluation(run, "pgd-10,apgd-ce"), predict(run, images)])
    copy, before = taken_over(old, new, run)
    got = new.do([evaluation(copy, "pgd-10,apgd-ce"), predict(copy, images)])
    again, both = {"new": got[f"evaluate {copy}"]}, {"old": kept["predict"], "new": got["predict"]}
    rows = [
        judge("folders", "outcomes found again", again, partial(changed, before, new.root / copy)),
        judge("folders", "predictions", both, partial(answered, *both.values())),
    ]
    shutil.rmtree(new.root / copy / "results")
    anew = new.do([Job("anew", (*evaluation(copy, "pgd-10").argv, "--output", "anew.json"))])
    a, b = (outcomes(side.root / place) for side, place in ((old, run), (new, copy)))
    kept_too = {name: found for name, found in a.items() if not name.startswith("apgd")}
    return [*rows, judge("folders", "outcomes measured anew", anew, partial(difference, kept_too, b))]


def check_resumed(old: Side, new: Side) -> Row:
    """A training of OLD that was stopped in the middle, resumed by NEW, against OLD's that was never stopped."""
    sets = "data.shots=4 train.epochs=2 train.log_every=1 train.optimizer.sam=0.05 train.ema=0.9"
    whole = training("whole", sets)
    half = Job("half", training("half", sets).argv, (f"{run_folder('half')}/metrics.jsonl", 7))
    old.do([whole, half])
    if not (old.run("half") / "checkpoint" / "state.safetensors").exists():
        return tell(Row("folders", "resumed training", "failed", "OLD could not be stopped in the middle"))
    copy, _ = taken_over(old, new, run_folder("half"))
    got = new.do([Job("new", ("train", "--output", copy, "--resume"))])
    return judge("folders", "resumed training", got, partial(compare_runs, old.run("whole"), new.root / copy))


def ends(folder: Path) -> dict[str, Any]:
    """Outcomes of a suite, by file."""
    return {file.name: json.loads(file.read_text()) for file in (folder / "outcomes").glob("*.json")}


def check_bench(old: Side, new: Side) -> list[Row]:
    """A suite finished by OLD has nothing left to do; one begun by OLD goes on without repeating what is done."""
    few, every = "zero-shot, vlp", "zero-shot, vlp, apd"
    made = old.do([bench(old, few, "begun"), bench(old, every, "finished")])
    rows = [judge("folders", "suites of OLD", made, lambda: [])]
    for folder in ("finished", "begun"):
        copy, before = taken_over(old, new, folder)
        got = new.do([bench(new, every, copy)])
        found = changed(before, new.root / copy, more=folder == "begun")
        found += difference(ends(old.root / "finished"), ends(new.root / copy))
        rows.append(judge("folders", f"{folder} suite", got, partial(list, found)))
    return rows


def measure(old: Side, new: Side, repeats: int) -> list[dict[str, Any]]:
    """Seconds of a training step (nine epochs less one) and of an evaluation; each checkout goes first in turn."""
    seconds: dict[str, dict[str, list[float]]] = {what: {"old": [], "new": []} for what in ("step", "evaluation")}
    sets = "data.shots=16 train.batch_size=32 train.validate_every=100 train.epochs="
    for i in range(repeats):
        short, long = training(f"time 1 {i}", f"{sets}1"), training(f"time 9 {i}", f"{sets}9")
        look = evaluation(run_folder(short.name), "pgd-20")
        for side in (old, new) if i % 2 == 0 else (new, old):
            took = {name: answer["seconds"] for name, answer in side.do([short, long, look]).items()}
            seconds["step"][side.name].append((took[long.name] - took[short.name]) / 40)  # 8 epochs of 5 batches
            seconds["evaluation"][side.name].append(took[look.name])
    rows = []
    for what, by_side in seconds.items():
        a, b = (statistics.median(by_side[name]) for name in ("old", "new"))
        ratios = sorted(n / o for o, n in zip(by_side["old"], by_side["new"], strict=True))
        spread = {"ratio": statistics.median(ratios), "from": ratios[0], "to": ratios[-1]}
        rows.append({"what": what, "old": a, "new": b, **spread})
    return rows


COMPARISONS: dict[str, Callable[[Side, Side, Path | None], list[Row]]] = {
    "plans": compare_plans,
    "prompts": compare_prompts,
    "evaluation": compare_evaluations,
    "folders": compare_folders,
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default=",".join(SECTIONS), help="some of: %(default)s,time")
    parser.add_argument("--time", action="store_true", help="also time both")
    parser.add_argument("--repeats", type=int, default=5, help="of --time")
    parser.add_argument("--keep", type=Path, help="folder for OLD's runs, to use them again")
    parser.add_argument("--testbed", type=Path, help="folder of the shared testbed: also train its CLIP on its images")
    parser.add_argument("--python", default=sys.executable, help="interpreter for both checkouts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    args.only = [*args.only.split(","), *(["time"] if args.time else [])]
    unknown = set(args.only) - {*SECTIONS, "time"}
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(SECTIONS)}, time")
    for tree in (args.old, args.new):
        if not (tree / "src" / "apd").is_dir():
            parser.error(f"{tree} is not a checkout: there is no src/apd in it")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and print what was found; returns the exit code."""
    args = parse(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        roots = {name: Path(scratch) / name for name in ("old", "new", "time-old", "time-new")}
        if args.keep:
            roots["old"] = args.keep.resolve() / fingerprint(args.old, args.python)
        for root in roots.values():
            root.mkdir(parents=True, exist_ok=True)
        old, new = (Side(n, t.resolve(), roots[n], args.python) for n, t in (("old", args.old), ("new", args.new)))
        rows: list[Row] = []
        for name in filter(COMPARISONS.__contains__, args.only):
            try:
                rows += COMPARISONS[name](old, new, args.testbed and args.testbed.resolve())
            except ChildProcessError as error:
                rows.append(tell(Row(name, "all", "failed", str(error))))
        for side in (old, new):
            side.root = roots[f"time-{side.name}"]
        times = measure(old, new, args.repeats) if "time" in args.only else []
    return report(rows, times, args.json)


def report(rows: Sequence[Row], times: Sequence[Mapping[str, Any]], as_json: bool) -> int:
    """Print a table or JSON; returns 1 if anything differs or failed."""
    equal = all(row.status in ("equal", "skipped") for row in rows)
    if as_json:
        print(json.dumps({"equal": equal, "rows": [asdict(row) for row in rows], "time": list(times)}, indent=1))
        return int(not equal)
    for row in rows:
        print(f"{row.status:8} {row.section:10} {row.name:40} {row.detail}".rstrip())
    for time in times:
        print("{what:10} old {old:.4f} s, new {new:.4f} s, new/old {ratio:.3f} ({from:.3f} to {to:.3f})".format(**time))
    counts = {status: sum(row.status == status for row in rows) for status in ("equal", "differs", "failed", "skipped")}
    print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
