"""The Hugging Face form: a folder for `RobustCLIP`, and for transformers: plain, or with code that the folder carries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from apd.errors import InputError
from apd.export.baked import (
    check_first_norm,
    class_tokenizer,
    has_visual_tokens,
    texts_of,
    why_not_but_visual,
    why_not_plain,
    with_class_tower,
    with_frame,
)
from apd.export.base import Form, Runner, Source
from apd.export.card import render_export_card
from apd.export.carried import TRANSFORMERS, copy_to
from apd.export.description import temperature
from apd.export.robust_clip import CONFIG, PROMPTS, RobustCLIP
from apd.models.classifier import PromptedCLIP
from apd.models.huggingface import HuggingFaceEncoder
from apd.models.preprocessing import Preprocessing
from apd.models.prompts import Prompts, PromptSpec
from apd.util.files import write_atomic
from apd.util.tensors import write_tensors
from apd.util.text import to_json

_PROMPTED = "apd_prompted_clip"
"""A model type that transformers does not know, so that it never loads a CLIP model without its prompts by mistake."""
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


class HuggingFaceForm(Form):
    """A folder in the Hugging Face format with a model card."""

    name: ClassVar[str] = "huggingface"
    one_feature_per_class: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        """See `Form.check`."""
        super().check(source)
        encoder = source.classifier.encoder
        if not isinstance(encoder, HuggingFaceEncoder):
            raise InputError(
                f"{encoder.info.source} is an encoder of your own, not of the Hugging Face format; use --to onnx."
            )
        if encoder.info.family != encoder.model.config.model_type:
            raise InputError(
                f"{encoder.info.source} is a {encoder.info.family} model, for which transformers has no class; use --to onnx."
            )
        check_first_norm(encoder, "huggingface")

    def write(self, source: Source, place: Path) -> dict[str, Any]:
        """See `Form.write`."""
        classifier, is_open = source.classifier, source.settings.open_vocabulary
        why_not = why_not_plain(classifier, is_open)
        carries_code = has_visual_tokens(classifier) and not is_open and why_not_but_visual(classifier, is_open) is None
        has_frame = why_not is not None and not carries_code
        clip = place if why_not is None else place / "clip"
        clip.mkdir(parents=True)
        _write_clip(classifier, clip, is_open, baked_frame=not has_frame)
        prompts = _explicit_prompts(classifier, is_open, has_frame)
        if prompts is not None:
            write_tensors(place / PROMPTS, prompts.state_dict(), {"format": "pt"})
        record = {
            "class_names": list(classifier.class_names),
            "temperature": temperature(source),
            "templates": list(classifier.templates) if is_open else ["{}"],
            "clip": clip.relative_to(place).as_posix(),
            "prompts": None if prompts is None else prompts.spec.model_dump(mode="json"),
            "open_vocabulary": is_open,
        }
        config = place / CONFIG
        if carries_code:
            _write_code(place, clip)
        known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {"model_type": _PROMPTED}
        write_atomic(config, to_json({**known, "apd": record}) + "\n")
        write_atomic(place / "README.md", render_export_card(source, why_not is None, carries_code))
        if why_not is None:
            return {"plain_transformers": True}
        if carries_code:
            note = f"transformers loads this export with trust_remote_code=True only, which runs {TRANSFORMERS} of the folder"
            return {"plain_transformers": False, "code": TRANSFORMERS, "notes": [f"{note}: {why_not}."]}
        return {"plain_transformers": False, "notes": [f"Plain transformers cannot load this export: {why_not}."]}

    def load(self, source: Source, place: Path) -> list[Runner]:
        """See `Form.load`."""
        robust = RobustCLIP.from_pretrained(str(place))
        runners: list[Runner] = [robust]
        if (place / TRANSFORMERS).is_file():
            # The module that was copied there, imported from here: what stands in a folder is not run.
            from apd.export.carried.modeling_prompted_clip import PromptedCLIPModel

            runners.append(_plain(source, place, robust.record, PromptedCLIPModel))
        elif robust.record["clip"] == ".":
            from transformers import AutoModelForZeroShotImageClassification

            runners.append(_plain(source, place, robust.record, AutoModelForZeroShotImageClassification))
        return runners


def _write_clip(classifier: PromptedCLIP, folder: Path, is_open: bool, baked_frame: bool) -> None:
    """Write a CLIP model that serves the classes, or all of it for an open vocabulary."""
    encoder = classifier.encoder
    assert isinstance(encoder, HuggingFaceEncoder)
    frame = classifier.bind_detached().frame if baked_frame else None
    if is_open:
        model, tokenizer = with_frame(encoder, frame), encoder.tokenizer
    else:
        texts = texts_of(classifier)
        rows = classifier.bind_detached().classes[[index for _, index in texts]]
        model, tokenizer = with_class_tower(encoder, rows, frame), class_tokenizer([text for text, _ in texts])
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    if not is_open:
        file = folder / "tokenizer_config.json"
        # The name that transformers 4 knows, too.
        write_atomic(
            file,
            to_json({**json.loads(file.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"})
            + "\n",
        )
    record = _processor(encoder.info.preprocessing, encoder.info.family)
    write_atomic(folder / "preprocessor_config.json", to_json(record) + "\n")


def _processor(how: Preprocessing, family: str) -> dict[str, Any]:
    """Write preprocessing in the words of ``preprocessor_config.json``."""
    crop = how.mode == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor" if family == "clip" else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": how.resize} if crop else {"height": how.size, "width": how.size},
        "resample": _RESAMPLING[how.interpolation],
        "do_center_crop": crop,
        **({"crop_size": {"height": how.size, "width": how.size}} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }


def _write_code(place: Path, clip: Path) -> None:
    """Write what transformers reads of an export with visual tokens: a configuration that names the code, and the code.

    The weights are in the files of `RobustCLIP`, to which an index points.
    """
    copy_to(place, TRANSFORMERS)
    for file in clip.iterdir():
        if file.name != CONFIG and file.suffix == ".json":
            shutil.copyfile(file, place / file.name)
    found: dict[str, str] = {}
    for file in (*sorted(clip.glob("*.safetensors")), place / PROMPTS):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file.relative_to(place).as_posix())
            if file.name == PROMPTS:
                shape, depth = tensors.get_slice("visual_tokens.0").get_shape(), len(list(tensors.keys()))
    write_atomic(place / "model.safetensors.index.json", to_json({"metadata": {}, "weight_map": found}) + "\n")
    module, kind = Path(TRANSFORMERS).stem, "PromptedCLIPModel"
    classes = {"AutoConfig": "PromptedCLIPConfig", "AutoModel": kind, "AutoModelForZeroShotImageClassification": kind}
    plain = json.loads((clip / CONFIG).read_text(encoding="utf-8"))
    del plain["model_type"]  # by which transformers would find it, and load a plain model of it
    config = {
        "model_type": _PROMPTED,
        "architectures": [kind],
        "auto_map": {name: f"{module}.{found}" for name, found in classes.items()},
        "clip_config": plain,
        "hidden_size": 12,  # see `PromptedCLIPConfig`
        "visual_tokens": shape[0],
        "visual_depth": depth,
    }
    write_atomic(place / CONFIG, to_json(config) + "\n")


@torch.no_grad()
def _explicit_prompts(classifier: PromptedCLIP, is_open: bool, has_frame: bool) -> Prompts | None:
    """Copy the prompts that are not baked in, each token written out; None where nothing is left."""
    learned = classifier.prompts
    if learned is None:
        return None
    text, visual = learned.text() if is_open else [], learned.visual()
    spec = PromptSpec(
        text_tokens=text[0].shape[-2] if text else 0,
        text_depth=len(text) or 1,
        visual_tokens=len(visual[0]) if visual else 0,
        visual_depth=len(visual) or 1,
        frame=learned.spec.frame if has_frame else 0.0,
        between=learned.spec.between if text else "",
        class_specific=bool(text and learned.n_classes),
    )
    if not text and not visual and not spec.frame:
        return None
    prompts = Prompts(spec, classifier.encoder.info, n_classes=learned.n_classes)
    strips = [*learned.strips] if spec.frame else []
    own = [*prompts.text_tokens, *prompts.visual_tokens, *(prompts.strips if spec.frame else [])]
    for mine, theirs in zip(own, [*text, *visual, *strips], strict=True):
        mine.copy_(theirs)
    return prompts


def _plain(source: Source, place: Path, record: dict[str, Any], kind: Any) -> Runner:
    """Load a model of transformers of this class; class names are put into the templates as its pipeline does."""
    from transformers import AutoTokenizer

    model: Any = kind.from_pretrained(place)
    # Not from a folder with code, about which transformers would ask on the terminal.
    tokenizer = AutoTokenizer.from_pretrained(place / record["clip"])
    info = source.classifier.encoder.info
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.preprocessing.mean, info.preprocessing.std))
    template = record["templates"][0]
    if len(record["templates"]) > 1:  # transformers knows one sentence only
        return RobustCLIP(place)
    texts = tokenizer(
        [template.replace("{}", name) for name in record["class_names"]], return_tensors="pt", padding=True
    )

    def logits(x: Tensor) -> Tensor:
        found: Tensor = model(**texts, pixel_values=(x - mean) / std).logits_per_image
        return found

    return logits
