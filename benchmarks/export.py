"""Whether exports give what the runs give: logits at several batch sizes, classes of adversarial images, the pipeline's classes.

python -m benchmarks.export RUN [RUN ...] --open-clip build/open-clip

writes benchmarks/results/export.json and the table of docs/deploying.md. open_clip is loaded from the folder that
scripts/test_open_clip.sh makes; without it, its row is computed from the written files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import apd
from apd.attacks import find
from apd.attacks.evaluation import AttackBatch
from apd.attacks.threat import ThreatModel, parse_eps
from apd.data.decode import read_image
from apd.export.base import Form, Runner, Source
from apd.export.check import BATCH_SIZES, find_images, run_in_batches
from apd.export.huggingface_form import HuggingFaceForm
from apd.export.open_clip_form import OpenClipForm
from apd.export.programs import OnnxForm, TorchForm
from apd.export.settings import ExportSettings
from apd.util.files import write_atomic
from benchmarks.figures import between_markers, table

ATTACK, FORMS = "pgd-20", (OnnxForm, TorchForm, HuggingFaceForm, OpenClipForm)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs, whose images are there")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--open-clip", type=Path, help="folder that open_clip is installed in")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    a = parser.parse_args(argv)
    torch.manual_seed(0)
    found = [measured(run, a.images, a.open_clip) for run in a.runs]
    write_atomic(a.results / "export.json", json.dumps(found, indent=1) + "\n")
    between_markers(a.docs / "deploying.md", page(found))


def measured(run: Path, n: int, open_clip: Path | None) -> dict[str, Any]:
    """Export a run in every form, and compare each with the run."""
    opened, classifier = apd.Run.open(run), apd.load_run(run)
    images = find_images(opened, classifier, n)
    assert images is not None and len(images) == n, f"{run} has no {n} images"
    x, train = images.pixels(), opened.config.train
    original = classifier.frozen()
    threat = ThreatModel(parse_eps(str(train.eps), train.norm), train.norm)
    harmed = find(ATTACK)(original, AttackBatch(x, images.labels, images.ids), threat).images
    source = Source(opened, classifier, ExportSettings())
    answers = [run_in_batches(original, some, max(BATCH_SIZES)) for some in (x, harmed)]
    right = [100 * float((some.argmax(-1) == images.labels).double().mean()) for some in answers]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for form in FORMS:
            folder = Path(place) / f"{form.name}{form.suffix}"
            chosen: Form = form()
            exported = getattr(apd.export, form.name)(run, folder, check_images=max(BATCH_SIZES))
            models = dict(zip((form.name, f"{form.name} in transformers"), chosen.load(source, folder), strict=False))
            if form is HuggingFaceForm:
                same, models["huggingface in transformers"] = in_transformers(folder, classifier, x)
            if form is OpenClipForm and open_clip is not None:
                models = {"open_clip itself": in_open_clip(folder, open_clip, classifier)}
            rows |= {name: compared(model, x, harmed, answers) for name, model in models.items()}
            print(exported, flush=True)
    about = {"data": opened.manifest["data"]["name"], "prompts": str(classifier.prompts and classifier.prompts.spec)}
    shown = {
        "images": n,
        "attack": ATTACK,
        "eps": str(train.eps),
        "right": right,
        "pipeline_same_class": same,
    }
    return {**about, **shown, "forms": rows}


def compared(model: Runner, x: Tensor, harmed: Tensor, wanted: list[Tensor]) -> dict[str, Any]:
    """The largest difference of logits at each batch size, and on how many images, clean and attacked, classes are the same."""
    found = {size: run_in_batches(model, x, size) for size in BATCH_SIZES}
    attacked = run_in_batches(model, harmed, max(BATCH_SIZES))
    same = (found[max(BATCH_SIZES)], wanted[0]), (attacked, wanted[1])
    return {
        "max_difference": {str(size): float((logits - wanted[0]).abs().max()) for size, logits in found.items()},
        "same_class": [int((own.argmax(-1) == other.argmax(-1)).sum()) for own, other in same],
    }


def normalised(classifier: apd.PromptedCLIP, x: Tensor) -> Tensor:
    """Pixels as a model wants them that does not normalise itself."""
    how = classifier.encoder.info.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    return (x - mean) / std


def in_transformers(folder: Path, classifier: apd.PromptedCLIP, x: Tensor) -> tuple[int, Runner]:
    """On how many images the pipeline gives the run's class, and its model; this runs the code of the folder, just written."""
    from transformers import pipeline

    names = list(classifier.class_names)
    classify = pipeline("zero-shot-image-classification", model=str(folder), trust_remote_code=True)
    photos = [Image.fromarray((some * 255).round().byte().permute(1, 2, 0).numpy()) for some in x]
    how = classifier.encoder.info.preprocessing
    seen = torch.stack([torch.from_numpy(read_image(photo.copy, how).copy()) for photo in photos]).float() / 255
    wanted = [names[i] for i in run_in_batches(classifier.frozen(), seen, 64).argmax(-1).tolist()]
    answers = classify(photos, candidate_labels=names)
    same = sum(answer[0]["label"] == name for answer, name in zip(answers, wanted, strict=True))
    texts = classify.tokenizer(names, return_tensors="pt")
    return same, lambda some: classify.model(**texts, pixel_values=normalised(classifier, some)).logits_per_image


def in_open_clip(folder: Path, installed: Path, classifier: apd.PromptedCLIP) -> Runner:
    """The model as open_clip itself loads it with the module that the folder carries."""
    sys.path.append(str(installed))
    from apd.export.carried.prompted_open_clip import load
    from tests import torchvision_cpu  # noqa: F401

    model, _, classes, _ = load(folder)

    def logits(x: Tensor) -> Tensor:
        features: Tensor = model.encode_image(normalised(classifier, x), normalize=True)
        return model.logit_scale.exp() * features @ classes.T

    return logits


def page(found: Sequence[dict[str, Any]]) -> str:
    """The table of docs/deploying.md."""
    head = ["run", "loaded as", *(f"at batch {size}" for size in BATCH_SIZES), "same class", "same class under attack"]
    rows = [
        [one["data"], name, *(f"{value:.1e}" for value in row["max_difference"].values()), *map(str, row["same_class"])]
        for one in found
        for name, row in one["forms"].items()
    ]
    parts = [table(head, rows)]
    for one in found:
        clean, attacked = one["right"]
        right = (
            f"of which the run gets {clean:.1f} % right, and {attacked:.1f} % under {one['attack']} at eps {one['eps']}"
        )
        same = f"The pipeline of `transformers` gives the run's class on {one['pipeline_same_class']}."
        parts.append(f"{one['data']} ({one['prompts']}): {one['images']} images, {right}, made on the run. {same}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
