"""How a run shows itself in a notebook: what was trained, and what its evaluations found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.runs.manifest import read_result
from apd.util.notebook import html_facts, html_table
from apd.util.text import first_of

if TYPE_CHECKING:
    from apd.runs.folder import Run


def run_html(run: Run, results: list[Path]) -> str:
    """Return tables of the run and of its evaluations, which ``results`` are the files of."""
    manifest, config = run.manifest, run.config
    data, summary = manifest.get("data", {}), manifest.get("summary", {})
    facts = {
        "method": config.method.name,
        "CLIP model": manifest["model"]["source"],
        "data": data.get("description") or data.get("name", ""),
        "classes": first_of(manifest["class_names"], "classes"),
        "trained at": f"{config.train.norm} eps {config.train.eps}, {config.train.length}, seed {config.train.seed}",
        "status": "finished" if run.finished else "unfinished",
        **{
            name.replace("_", " "): f"{summary[name]:.2f} %"
            for name in ("val_clean", "val_robust")
            if summary.get(name) is not None
        },
        **({"seconds": f"{manifest['seconds']:.0f}"} if "seconds" in manifest else {}),
    }
    tables = [html_facts(f"Run {run.path}", facts)]
    rows = [row for file in results for row in _rows(read_result(file))]
    head = ("evaluated on", "images", "attack", "accuracy %", "zero-shot %")
    return "\n".join([*tables, *([html_table("Evaluations", head, rows)] if rows else [])])


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    where = f"{result['data']} {result['split']}, {result['norm']} eps {result['eps_text']}"
    base = result["undefended"]
    rows = [("clean", result["clean"], base and base["clean"])]
    rows += [
        (name, score["accuracy"], base and base["attacks"][name]["accuracy"])
        for name, score in result["attacks"].items()
    ]
    return [
        (where, str(result["n"]), name, f"{accuracy:.2f}", "-" if other is None else f"{other:.2f}")
        for name, accuracy, other in rows
    ]
