"""Programs: a classifier traced by `torch.export`, kept as such or translated to ONNX."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from apd.errors import InputError
from apd.export.base import Form, Runner, Source
from apd.export.settings import Precision
from apd.models.classifier import BoundCLIP, FrozenClassifier, PromptedCLIP
from apd.models.huggingface import HuggingFaceEncoder
from apd.util.extras import import_extra
from apd.util.tensors import read_tensors, write_tensors

_MOST = 65_536
"""Images or class names at a time."""


class ImageFeatures(nn.Module):
    """From pixels (B,3,S,S) in [0,1] to image features (B,D) of unit length."""

    def __init__(self, bound: BoundCLIP) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, images: Tensor) -> Tensor:
        """Image features."""
        return self.bound.features(images)


class TextFeatures(nn.Module):
    """From texts (C,L-n), tokenised without the ``n`` prompt tokens, to text features (C,D) of unit length, prompts included."""

    def __init__(self, encoder: HuggingFaceEncoder, tokens: list[Tensor]) -> None:
        super().__init__()
        self.held = (encoder, [rows.detach() for rows in tokens])

    def forward(self, ids: Tensor) -> Tensor:
        """Text features."""
        encoder, tokens = self.held
        if tokens:
            first, n = encoder.family.start_tokens, len(tokens[0])
            # What is under a prompt token is replaced: see `HuggingFaceEncoder.prompt_ids`.
            room = ids[:, first : first + 1].expand(-1, n)
            ids = torch.cat([ids[:, :first], room, ids[:, first:]], dim=1)
        return F.normalize(encoder.encode_text(ids, tokens).float(), dim=-1)


def trace(module: nn.Module, example: Tensor, name: str) -> ExportedProgram:
    """Trace a module of one input whose first dimension stays free."""
    batch = Dim(name, min=1, max=_MOST)
    with torch.no_grad():
        return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))


class ProgramForm(Form):
    """A traced classifier in one file; for an open vocabulary a folder with a program for each tower and the tokenizer."""

    def check(self, source: Source) -> None:
        """See `Form.check`."""
        super().check(source)
        encoder = source.classifier.encoder
        if source.settings.open_vocabulary and not isinstance(encoder, HuggingFaceEncoder):
            raise InputError(
                f"{encoder.info.source} is an encoder of your own, whose tokenizer cannot be exported; leave out "
                "--open-vocabulary."
            )

    def write(self, source: Source, place: Path) -> dict[str, Any]:
        """See `Form.write`."""
        classifier = source.classifier
        side = classifier.encoder.info.image_size
        bound, example = classifier.bind_detached(), torch.rand(3, 3, side, side)
        if source.settings.precision == "float16":
            bound = _halved(bound)
        if not source.settings.open_vocabulary:
            self.save(trace(FrozenClassifier(bound), example, "batch"), place, source, ("images", "logits"))
            return {}
        encoder = classifier.encoder
        assert isinstance(encoder, HuggingFaceEncoder)
        place.mkdir()
        images = trace(ImageFeatures(bound), example, "batch")
        self.save(images, place / f"image{self.suffix}", source, ("images", "features"))
        tokens, about = _shared_tokens(classifier), _describe_text(source)
        ids = torch.cat([encoder.prompt_ids(classifier.class_names[:2])] * 2)[:3, : about["context_length"]]
        text = trace(TextFeatures(encoder, tokens), ids, "classes")
        self.save(text, place / f"text{self.suffix}", source, ("ids", "features"))
        encoder.tokenizer.save_pretrained(place / "tokenizer")
        if "own" in about:
            write_tensors(place / about["own"], {"features": classifier.bind_detached().classes}, {"format": "pt"})
        return {"output": {"name": "features", "shape": ["batch", encoder.info.embed_dim]}, "text": about}

    def load(self, source: Source, place: Path) -> list[Runner]:
        """See `Form.load`."""
        if place.is_file():
            return [self.open(place)]
        image, text = (self.open(place / f"{tower}{self.suffix}") for tower in ("image", "text"))
        about = _describe_text(source)
        with torch.no_grad():
            features = [text(_tokenise(place / "tokenizer", about, t, source)) for t in about["templates"]]
        classes = F.normalize(torch.stack(features).mean(dim=0), dim=-1)
        if "own" in about:
            # What the text program is off by is added, so that a comparison of these classes sees it.
            off = classes - _with_shared_context(source.classifier).bind_detached().classes
            classes = read_tensors(place / about["own"], "export again")[0]["features"] + off
        info = source.classifier.encoder.info
        return [lambda x: info.logit_scale * image(x) @ classes.T + info.logit_bias]

    @abstractmethod
    def save(self, program: ExportedProgram, file: Path, source: Source, names: tuple[str, str]) -> None:
        """Write a program whose input and output have ``names``."""

    @abstractmethod
    def open(self, file: Path) -> Runner:
        """Load a program."""


class TorchForm(ProgramForm):
    """A program of `torch.export`, which torch runs without this package."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"

    def save(self, program: ExportedProgram, file: Path, source: Source, names: tuple[str, str]) -> None:
        """See `ProgramForm.save`."""
        torch.export.save(program, file)

    def open(self, file: Path) -> Runner:
        """See `ProgramForm.open`."""
        return torch.export.load(file).module()


class OnnxForm(ProgramForm):
    """An ONNX graph."""

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16", "int8")

    def check(self, source: Source) -> None:
        """See `Form.check`."""
        for module in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(module, "onnx", "--to onnx")
        super().check(source)

    def save(self, program: ExportedProgram, file: Path, source: Source, names: tuple[str, str]) -> None:
        """See `ProgramForm.save`."""
        from apd.export.onnx_files import quantise, to_onnx

        to_onnx(program, file, names)
        if source.settings.precision == "int8":
            quantise(file)

    def open(self, file: Path) -> Runner:
        """See `ProgramForm.open`."""
        from apd.export.onnx_files import open_onnx

        return open_onnx(file)


def _halved(bound: BoundCLIP) -> BoundCLIP:
    """Copy a classifier with the weights of the image tower in float16; normalisation and logits stay in float32."""
    encoder = copy.deepcopy(bound.encoder)
    buffers = {name: buffer for name, buffer in bound.encoder.named_buffers() if "." not in name}
    encoder.half()
    for name, buffer in buffers.items():
        setattr(encoder, name, buffer)
    return replace(bound, encoder=encoder)


def _with_shared_context(classifier: PromptedCLIP) -> PromptedCLIP:
    """Give all classes the context that a new one has."""
    prompts = classifier.prompts
    if prompts is None or not prompts.n_classes:
        return classifier
    shared = prompts.for_classes([None] * len(classifier.class_names))
    return PromptedCLIP(classifier.encoder, shared, classifier.class_names, classifier.templates)


def _shared_tokens(classifier: PromptedCLIP) -> list[Tensor]:
    """Text tokens (n,W) for any name, one tensor per block."""
    prompts = classifier.prompts
    if prompts is None:
        return []
    return [tokens[0] for tokens in prompts.for_classes([None]).text()] if prompts.n_classes else prompts.text()


def _describe_text(source: Source) -> dict[str, Any]:
    """Say how a class name becomes the text program's input."""
    classifier = source.classifier
    encoder, tokens = classifier.encoder, _shared_tokens(classifier)
    assert isinstance(encoder, HuggingFaceEncoder)
    # Without the places of the prompt tokens, so that a name which is too long is an error and not cut.
    length = encoder.info.context_length - (len(tokens[0]) if tokens else 0)
    about = {
        "input": {"name": "ids", "shape": ["classes", length], "type": "int64"},
        # Learned words stand before the name; the first template's tail ends the text.
        "templates": ["{}".join(classifier.around_name())] if tokens else list(classifier.templates),
        "context_length": length,
        "lower_case": encoder.lower_case,
    }
    specific = classifier.prompts is not None and classifier.prompts.n_classes
    return {**about, "own": "classes.safetensors"} if specific else about


def _tokenise(folder: Path, about: dict[str, Any], template: str, source: Source) -> Tensor:
    from transformers import AutoTokenizer

    texts = [template.replace("{}", name) for name in source.classifier.class_names]
    texts = [text.lower() for text in texts] if about["lower_case"] else texts
    padded = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=about["context_length"])
    return torch.tensor(padded["input_ids"])
