"""The model card of an export: what it is, how it is loaded, and how robust it was measured to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from apd.attacks.named import reads_gradients
from apd.export.base import Source
from apd.export.carried import TRANSFORMERS
from apd.export.description import public_name
from apd.export.robust_clip import TAGS
from apd.runs.card import on_hub
from apd.runs.manifest import read_result
from apd.runs.output import summary_files
from apd.runs.reliability import reliability
from apd.util.text import code_block, code_span, first_of, markdown

_LOADED = """\
from apd.export import RobustCLIP
from PIL import Image

model = RobustCLIP.from_pretrained("OWNER/NAME")  # or a folder
model.classify([Image.open("photo.jpg")])         # probability of each class"""
_PLAIN = """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="OWNER/NAME")
classify("photo.jpg", candidate_labels={labels})"""
_CODE = _PLAIN.replace('"OWNER/NAME")', '"OWNER/NAME", trust_remote_code=True)')


def render_export_card(source: Source, plain: bool, carries_code: bool = False) -> str:
    """Write the Markdown text of ``README.md``, with the header that the hub reads.

    Args:
        source: what is exported.
        plain: whether transformers loads it without this package.
        carries_code: whether it does with ``trust_remote_code``, by code that the export carries.
    """
    run, names = source.run, list(source.classifier.class_names)
    results = [read_result(file) for file in summary_files(run.results)]
    model = public_name(run.manifest["model"]["source"])
    title = run.path.resolve().name
    header = {
        "library_name": "apd",
        "pipeline_tag": "zero-shot-image-classification",
        "license": source.settings.license,
        **({"base_model": model} if on_hub(model) else {}),
        "tags": [*TAGS, run.config.method.name],
        **({"model-index": [{"name": title, "results": _index(results)}]} if results else {}),
    }
    usage = [code_block(_LOADED, "python")]
    if plain:
        usage += ["\nOr with transformers alone:\n", code_block(_PLAIN.format(labels=names[:3]), "python")]
    elif carries_code:
        usage += [
            f"\nOr with transformers alone; `trust_remote_code` runs `{TRANSFORMERS}` of this repository on your machine:\n"
        ]
        usage += [code_block(_CODE.format(labels=names[:3]), "python")]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
            f"# {markdown(title)}\n",
            f"{code_span(model)} with learned prompts that make it robust to adversarial images; classes: "
            f"{markdown(first_of(names, 'classes', 10))}.\n",
            "## How robust it is\n",
            *_table(results),
            "\n## How to use it\n",
            *usage,
            "",
        ]
    )


def _table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table: each evaluation, beside zero-shot CLIP."""
    if not results:
        yield "Not measured yet: run `apd evaluate` on the run, and export again."
        return
    yield "| images | threat | accuracy % | 95 % interval | zero-shot CLIP % | reliable |\n|---|---|---|---|---|---|"
    for result in results:
        about = f"{result['n']} of {markdown(_images(result))}"
        trusted = reliability(result).word
        for name, score, interval, control in _rows(result):
            low, high = interval
            other = "-" if control is None else f"{control:.1f}"
            yield f"| {about} | {markdown(name)} | {score:.1f} | {low:.1f} to {high:.1f} | {other} | {trusted} |"
    names = dict.fromkeys(name for result in results for name in result["attacks"])
    blind = [markdown(name) for name in names if not reads_gradients(name)]
    but = f", but for {' and '.join(blind)}, which follow no gradients of it" if blind else ""
    yield f"\nAttacks know the whole model, prompts included (white-box){but}, in float32; eps is in [0,1] pixel units."


def _images(result: Mapping[str, Any]) -> str:
    """Say what was classified: the data, and where it is not all classes of the test images as they are, what else."""
    split, classes = result.get("split", "test"), result.get("classes", "all")
    corrupted = f"corrupted by {result['corruption']}" if result.get("corruption") else ""
    parts = [
        result["data"],
        "" if split == "test" else split,
        "" if classes == "all" else f"{classes} classes",
        corrupted,
    ]
    return ", ".join(part for part in parts if part)


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, float, tuple[float, float], float | None]]:
    """Yield threat, accuracy, interval and the control's accuracy."""
    control = result["undefended"]
    yield "clean", result["clean"], result["clean_interval"], control and control["clean"]
    for name, entry in result["attacks"].items():
        threat = f"{name}, {result['norm']} eps {result['eps_text']}"
        yield threat, entry["accuracy"], entry["interval"], control and control["attacks"][name]["accuracy"]
    if len(result["attacks"]) > 1:
        entry = result["worst"]
        threat = (
            f"the worst of {' and '.join(result['attacks'])} for each image, {result['norm']} eps {result['eps_text']}"
        )
        yield threat, entry["accuracy"], entry["interval"], control and control["worst"]["accuracy"]


def _index(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write results as the hub's ``model-index`` has them."""
    task = {"type": "zero-shot-image-classification"}
    return [
        {
            "task": task,
            "dataset": {"name": _images(result), "type": result["data"], "split": result["split"]},
            "metrics": [
                {"type": "accuracy", "name": f"accuracy, {name}", "value": round(score, 2)}
                for name, score, *_ in _rows(result)
            ],
        }
        for result in results
    ]
