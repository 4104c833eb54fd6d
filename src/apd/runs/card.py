"""The model card of a run: every circumstance, for a person and for the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from apd.data.settings import REST
from apd.models.calibration import Calibration
from apd.runs.chance import chance_note
from apd.runs.headline import weight
from apd.runs.reliability import reliability
from apd.util.progress import all_of
from apd.util.text import code_block, code_span, markdown

if TYPE_CHECKING:
    from apd.runs.config import RunConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def on_hub(model: str) -> bool:
    """Whether a model's source can be a hub's ``base_model``, which refuses a card with a path there."""
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def render_card(
    path: Path, manifest: Mapping[str, Any], config: RunConfig, results: Sequence[Mapping[str, Any]]
) -> str:
    """The Markdown text of ``RUN/README.md``.

    Args:
        path: the run folder, in the form in which it was given.
        manifest: content of ``run.json``.
        config: settings of the run.
        results: evaluations as `apd evaluate --json` prints them (`Result.to_dict`).
    """
    model = manifest["model"]
    header = {
        "library_name": "apd",
        "pipeline_tag": "zero-shot-image-classification",
        **({"base_model": model["source"]} if on_hub(model["source"]) else {}),
        "tags": ["clip", "prompt-tuning", "adversarial-robustness", config.method.name],
    }
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
            f"# {markdown(path.name)}\n",
            f"Prompts that make {code_span(model['source'])} robust to adversarial images, learned with `apd`.",
            "The CLIP itself is unchanged.\n",
            *_headline(config, manifest, results),
            f"{code_block(_usage(path), 'python')}\n",
            "## Circumstances\n",
            _circumstances(manifest, config),
            f"\nAll settings (`config.yaml`):\n\n{code_block(config.to_yaml(), 'yaml')}\n",
            "## All evaluations\n",
            _results(results),
            "\nThe whole model is attacked, prompts included. Clean accuracy is never labelled robust.\n",
        ]
    )


def _headline(config: RunConfig, manifest: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How robust it is beside zero-shot CLIP, and whether the health checks passed, from the evaluation that says most."""
    yield "## How robust it is\n"
    if not results:
        yield "Not evaluated yet: `apd evaluate RUN`.\n"
        return
    found = max(results, key=lambda result: weight(result, manifest, config.train))
    under = f", corrupted by {found['corruption']}" if found.get("corruption") else ""
    what = markdown(f"{found['data']}{under}")
    split, norm, eps = (markdown(str(found.get(key, "test"))) for key in ("split", "norm", "eps_text"))
    patched = any(re.match(r"patch-\d", name) for name in found["attacks"])
    but = ", a patch to any pixels of its square" if patched else ""
    yield (
        f"Accuracy in percent on {_sampled(found)} {split} images of {what}, with 95 % intervals; attacks change every image "
        f"within {norm} eps {eps} of the pixel range [0,1]{but}.\n"
    )
    base = found.get("undefended")
    lines = ["| images | this classifier | zero-shot CLIP |", "|---|---|---|"]
    for name, (own, other) in _beside(found, base).items():
        lines.append(f"| {markdown(name)} | **{_percent(own)}** | {_percent(other) if other else '-'} |")
    yield "\n".join(lines) + "\n"
    if note := chance_note(found):
        yield f"**{note}**\n"
    yield f"**Reliable: {markdown(reliability(found).describe())}.**\n"
    yield f"{_health(found.get('checks', ()))}\n"


def _beside(
    found: Mapping[str, Any], base: Mapping[str, Any] | None
) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Clean accuracy and that under each attack, of the classifier and of the control."""
    rows: dict[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]]
    rows = {"clean": (_clean(found), _clean(base) if base else None)}
    for attack, entry in found["attacks"].items():
        rows[f"attacked by {attack}"] = (entry, base["attacks"].get(attack) if base else None)
    if len(found["attacks"]) > 1:
        rows["worst of these attacks, image by image"] = (found["worst"], base["worst"] if base else None)
    return rows


def _clean(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {"accuracy": scores["clean"], "interval": scores["clean_interval"]}


def _percent(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['accuracy']:.1f} ({low:.1f} to {high:.1f})"


def _health(checks: Sequence[Mapping[str, Any]]) -> str:
    """One line on the health checks, and one on each that failed."""
    judged = [check for check in checks if check["passed"] is not None]
    failed = [check for check in judged if not check["passed"]]
    if not judged:
        return "Health checks: none were run."
    if not failed:
        return f"Health checks: {all_of(len(judged))} passed, so there is no sign that the attacks were too weak."
    lines = [f"Health checks: {len(failed)} of {len(judged)} failed or warn.\n"]
    for check in failed:
        verdict = "warning" if check.get("warns") else "FAILED"
        lines.append(f"- {markdown(check['name'])} ({verdict}): {markdown(check['message'])}")
    return "\n".join(lines)


def _usage(path: Path) -> str:
    place = path.as_posix()
    literal = json.dumps(place, ensure_ascii=not place.isprintable())
    return f"import apd\n\nclassifier = apd.load_run({literal})  # pixels in [0,1] to logits"


def _circumstances(manifest: Mapping[str, Any], config: RunConfig) -> str:
    model, classes, size = manifest["model"], manifest["class_names"], manifest["model"]["image_size"]
    shown = ", ".join(classes[:20]) + (f" … ({len(classes)} classes, all in run.json)" if len(classes) > 20 else "")
    rows = {
        "method": config.method.name,
        "model": _encoder(model),
        "weights sha256": model["weights_sha256"],
        "tokenizer sha256": model["tokenizer_sha256"],
        **{name.replace("_", " "): _teacher(other) for name, other in manifest.get("teachers", {}).items()},
        "prompts sha256": manifest["prompts_sha256"],
        "preprocessing": ", ".join(f"{key} {value}" for key, value in model["preprocessing"].items()),
        "data": f"{config.data.source}, {config.data.shots} shots, classes {config.data.classes}",
        **_images(manifest),
        "classes": shown,
        "templates": "; ".join(manifest["templates"]),
        "prompts": ", ".join(f"{key} {value}" for key, value in manifest["prompts"].items() if value is not None),
        **_training(manifest, config, size),
        "seeds": ", ".join(f"{key} {value}" for key, value in manifest["seeds"].items()),
        "versions": ", ".join(f"{key} {value}" for key, value in manifest["versions"].items()),
        "probabilities": _calibrated(manifest),
        **{key.replace("_", " "): _rounded(value) for key, value in manifest.get("facts", {}).items()},
        **{key.replace("_", " "): _rounded(value) or "none" for key, value in manifest["summary"].items()},
    }
    lines = [f"| {markdown(key)} | {markdown(str(value))} |" for key, value in rows.items()]
    return "\n".join(["| what | value |\n|---|---|", *lines])


def _rounded(value: Any) -> Any:
    """A measured number with as many digits as mean something; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _calibrated(manifest: Mapping[str, Any]) -> str:
    if "calibration" not in manifest:
        return "not calibrated (apd calibrate RUN)"
    known = Calibration.read(manifest["calibration"])
    before, after = 100 * known.ece_before, 100 * known.ece_after
    return (
        f"temperature {known.temperature:.3g}, fitted on {known.fitted_on}; calibration error "
        f"{before:.1f} % before, {after:.1f} % after"
    )


def _training(manifest: Mapping[str, Any], config: RunConfig, size: int) -> dict[str, str]:
    """How the prompts were trained; of imported ones only their file is known."""
    threat = f"{config.train.norm}, eps {config.train.eps} in [0,1] pixel units at {size} px"
    if "imported" in manifest:
        about = manifest["imported"]
        return {
            "evaluated by default at": threat,
            "imported": f"{about['form']}, {about['file']}, sha256 {about['sha256']}",
        }
    return {
        "training threat model": threat,
        "training": f"{config.train.length}, batch {config.train.batch_size}, {config.train.precision}",
    }


_SPLITS = {
    "train_images": "training images",
    "validation_images": "validation images",
    "unlabelled_images": "unlabelled images",
}
_SOURCES = {REST: "the training images that are not shots"}


def _images(manifest: Mapping[str, Any]) -> dict[str, str]:
    """How many images of each split were used, and of how many."""
    if "left_out" not in manifest:  # an older run: what could not be read is counted among its images
        return {}
    rows = {}
    for key, title in _SPLITS.items():
        if key not in manifest["data"]:
            continue
        # Older runs with unlabelled images did not keep how many of them were left out, nor their source.
        used, left_out = manifest["data"][key], manifest["left_out"].get(key, 0)
        note = f" of {used + left_out}; {left_out} unreadable left out, no others in their place" if left_out else ""
        source = manifest["data"].get("unlabelled_source") if key == "unlabelled_images" else None
        rows[title] = f"{used}{note}" + (f" (from {_SOURCES.get(source, source)})" if source else "")
    return rows


def _teacher(record: Mapping[str, Any]) -> str:
    about = f"{_encoder(record)}, weights sha256 {record['weights_sha256']}"
    return f"{about}, prompts of {record['run']}, sha256 {record['prompts_sha256']}" if "run" in record else about


def _encoder(record: Mapping[str, Any]) -> str:
    about = f"revision {record['revision'] or 'none'}, {record['family']}, {record['image_size']} px"
    return f"{record['source']} ({about})"


def _results(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "None yet: `apd evaluate RUN`."
    lines = [
        "| data | norm | eps | seed | images | attack | accuracy % | 95 % interval | reliable |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        corrupted = f", {result['corruption']}" if result.get("corruption") else ""
        about = (markdown(str(result[key])) for key in ("norm", "eps_text", "seed"))
        where = " | ".join([markdown(f"{result['data']}{corrupted}"), *about, _sampled(result)])
        worst = [(f"worst of {', '.join(result['attacks'])}", result["worst"])] if len(result["attacks"]) > 1 else []
        trusted = reliability(result).word
        for attack, entry in [("clean", _clean(result)), *result["attacks"].items(), *worst]:
            low, high = entry["interval"]
            lines.append(
                f"| {where} | {markdown(attack)} | {entry['accuracy']:.1f} | {low:.1f} to {high:.1f} | {trusted} |"
            )
    return "\n".join(dict.fromkeys(lines))


def _sampled(result: Mapping[str, Any]) -> str:
    """The number of images, and of how many where they are a random sample."""
    n, available = result["n"], result.get("n_available", result["n"])
    return f"{n}" if n + len(result.get("skipped_images", ())) >= available else f"{n} of {available}"
