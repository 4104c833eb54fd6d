"""`import_run`: a run folder of what other code has learned, so that it is evaluated like any other run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apd.data.sources.unlabelled import read_list
from apd.errors import InputError
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import Prompts, PromptSpec
from apd.models.templates import DEFAULT_TEMPLATES
from apd.runs.config import RunConfig, recorded
from apd.runs.folder import Run
from apd.runs.learners import Learned, read_learner
from apd.runs.load import describe_encoder
from apd.runs.output import check_output
from apd.util.files import user_path
from apd.util.tensors import sha256_of_file
from apd.util.text import printable, short
from apd.util.versions import versions

_ALIKE = 1e-2
"""Embedded texts are the same if they differ by less than this share of their length; they may be in half precision."""


def import_run(
    checkpoint: str | Path,
    form: str,
    model: str | Path | DualEncoder,
    classes: str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    eps: str | float = "1/255",
    overwrite: bool = False,
) -> Run:
    """Make a run folder of a prompt learner that CoOp's, MaPLe's or FAP's code has saved.

    The file is read without executing anything. Prompts that are mapped from others are stored as what the maps give.
    Classes and model are compared with the embedded texts in the checkpoint, where it has them.

    Args:
        checkpoint: ``model.pth.tar-N`` of the prompt learner.
        form: ``coop``, ``maple`` or ``fap``.
        model: the CLIP that it was learned on, as `apd.load_clip` takes it.
        classes: file with one class name per line, in the order of training.
        output: new run folder.
        data: what `apd.evaluate_run` evaluates on unless it is told otherwise; None: it has to be told.
        eps: threat model that it is evaluated with unless it is told otherwise, in [0,1] pixel units.
        overwrite: replace a run in ``output``.

    Returns:
        The run.

    Raises:
        InputError: a file that holds more than tensors, numbers and text; another form, model or list of classes than the
            checkpoint's; an output that cannot be used.

    Example:
        >>> import apd
        >>> apd.import_run("model.pth.tar-5", "maple", "ViT-B-16.pt", "names.txt", "runs/maple")  # doctest: +SKIP
    """
    file = user_path(checkpoint)
    check_output(output, overwrite=overwrite)
    names = [name.replace("_", " ") for name in read_list(str(classes))]  # as CoOp's code does
    evaluated = _evaluated(form, names, data, eps)
    learned = read_learner(file, form)
    encoder = load_clip(model)
    prompts = _prompts(learned, encoder, names, file)
    PromptedCLIP(encoder, prompts, names, DEFAULT_TEMPLATES)  # refuses names that are twice there or too long
    method = {"name": f"imported-{form}", "prompts": prompts.spec.model_dump(mode="json")}
    config = recorded({"model": encoder.info.source, "method": method, **evaluated}, {})
    manifest = {**_origin(file, form, config), "model": describe_encoder(encoder.info), "class_names": names}
    run = Run.create(output, config, manifest, overwrite=overwrite)
    run.save_prompts(prompts.state_dict())
    run.finish({"imported_from": file.name})
    return run


def _origin(file: Path, form: str, config: RunConfig) -> dict[str, Any]:
    """Where imported prompts are from, as their manifest says it."""
    return {
        "teachers": {},
        "imported": {"file": str(file.resolve()), "sha256": sha256_of_file(file), "form": form},
        "data": {"name": form, "source": config.data.source, "description": f"learned by the code of {form}"},
        "templates": list(DEFAULT_TEMPLATES),
        "prompts": config.method.settings.prompts.model_dump(mode="json"),
        "seeds": {},
        "versions": versions(),
    }


def read_classifier(file: Path, form: str, encoder: DualEncoder, class_names: Sequence[str]) -> PromptedCLIP:
    """Make the classifier that a checkpoint of CoOp's, MaPLe's or FAP's code holds, on the encoder's device.

    Args:
        file: ``model.pth.tar-N`` of the prompt learner.
        form: ``coop``, ``maple`` or ``fap``.
        encoder: the CLIP that it was learned on.
        class_names: in the order of training.

    Raises:
        InputError: see `import_run`.
    """
    names = [name.replace("_", " ") for name in class_names]  # as CoOp's code does
    learned = read_learner(file, form)
    prompts = _prompts(learned, encoder, names, file).requires_grad_(False)
    return PromptedCLIP(encoder, prompts.to(encoder.device), names, DEFAULT_TEMPLATES).eval()


def _check_texts(learned: Learned, encoder: DualEncoder, names: list[str], file: Path) -> str:
    """Compare classes and model with the embedded texts of the checkpoint.

    Returns:
        The words that stand between the context and the class names; none where the texts were not saved.
    """
    context = learned.text[0]
    counted = len(context) if context.dim() == 3 else None if learned.suffix is None else len(learned.suffix)
    if counted not in (None, len(names)):
        raise InputError(f"{file} was learned with {counted} classes, got {len(names)} names.")
    if learned.suffix is None:
        if learned.visual:
            raise InputError(
                f"{file} has no token_suffix, the texts that it was learned with, of which some words may belong to the prompt; "
                "save the whole state_dict."
            )
        return ""
    embedding = _word_embedding(encoder, file)
    if learned.suffix.shape[-1] != embedding.shape[1]:
        raise InputError(
            f"{file} has texts of width {learned.suffix.shape[-1]}, but {encoder.info.source} has {embedding.shape[1]}; give the "
            "model that it was learned on."
        )
    between = _between(learned.suffix[0], names[0], encoder, embedding, file)
    head = f"{between} " if between else ""
    n_tokens = context.shape[-2]
    ids = encoder.prompt_ids([f"{head}{name}." for name in names], n_tokens)[:, 1 + n_tokens :].cpu()
    for name, wanted, held in zip(names, ids, learned.suffix, strict=True):
        length = _length(wanted)
        if length > len(held) or not _alike(embedding[wanted[:length]], held[:length]):
            raise InputError(
                f"{file} was learned with another class in place of {name!r}, or in another order, or on another model than "
                f"{encoder.info.source}."
            )
    return between


def _word_embedding(encoder: DualEncoder, file: Path) -> Tensor:
    from apd.models.huggingface import HuggingFaceEncoder

    if not isinstance(encoder, HuggingFaceEncoder) or encoder.info.family != "clip":
        raise InputError(
            f"{file}: {encoder.info.source} is not a CLIP model; the code of CoOp, MaPLe and FAP supports no other."
        )
    weight: Tensor = encoder.model.text_model.embeddings.token_embedding.weight
    return weight.detach().float().cpu()


def _between(held: Tensor, name: str, encoder: DualEncoder, embedding: Tensor, file: Path) -> str:
    """Read the words before the first class name; MaPLe and FAP keep those of the template that no token replaces."""
    from apd.models.huggingface import HuggingFaceEncoder

    assert isinstance(encoder, HuggingFaceEncoder)
    wanted = encoder.prompt_ids([f"{name}."])[0, 1:].tolist()
    wanted = wanted[: _length(torch.tensor(wanted))]
    nearest = torch.cdist(held, embedding).argmin(dim=1)
    if not _alike(embedding[nearest], held):
        raise InputError(
            f"{file} holds texts that {encoder.info.source} does not know: give the model that it was learned on."
        )
    read: list[int] = nearest.tolist()
    read = read[: read.index(wanted[-1]) + 1] if wanted[-1] in read else read
    words = str(encoder.tokenizer.decode(read[: -len(wanted)])).strip() if len(read) > len(wanted) else ""
    if read[-len(wanted) :] != wanted:
        first = str(encoder.tokenizer.decode(read[:-1])).strip()
        raise InputError(
            f"{file} was learned with the text {short(first)} for its first class, but the first name is {name!r}."
        )
    return words


def _length(ids: Tensor) -> int:
    """The number of tokens up to the first end token, the largest."""
    return int(ids.argmax()) + 1


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).norm(dim=-1) <= _ALIKE * other.norm(dim=-1)).all())


def _spec(learned: Learned, between: str) -> PromptSpec:
    visual = learned.visual
    return PromptSpec(
        text_tokens=learned.text[0].shape[-2],
        text_depth=len(learned.text),
        visual_tokens=len(visual[0]) if visual else 0,
        visual_depth=max(1, len(visual)),
        class_specific=learned.text[0].dim() == 3,
        between=between,
    )


def _check_image_tower(learned: Learned, encoder: DualEncoder, file: Path) -> None:
    """Compare the image tower that the checkpoint holds, if it does, with the model's."""
    from apd.models.foreign.layouts import IMAGE
    from apd.models.huggingface import HuggingFaceEncoder

    assert isinstance(encoder, HuggingFaceEncoder) or not learned.image
    known = encoder.model.state_dict() if isinstance(encoder, HuggingFaceEncoder) else {}
    for name, held in IMAGE.convert(dict(learned.image))[0].items():
        own = known.get(name)
        if own is None or own.shape != held.shape or not _alike(held.flatten(), own.detach().float().cpu().flatten()):
            raise InputError(
                f"{file} was saved with another image tower than that of {encoder.info.source} ({printable(name)} differs); give "
                "the model that it was learned on, MODEL+FILE if it has a tuned tower."
            )


def _prompts(learned: Learned, encoder: DualEncoder, names: list[str], file: Path) -> Prompts:
    spec = _spec(learned, _check_texts(learned, encoder, names, file))
    _check_image_tower(learned, encoder, file)
    named = {"text_tokens": learned.text, "visual_tokens": learned.visual}
    tensors = {f"{name}.{depth}": rows for name, blocks in named.items() for depth, rows in enumerate(blocks)}
    try:
        return Prompts.from_tensors(spec, encoder.info, tensors)
    except InputError as error:
        raise InputError(f"{file} does not fit {encoder.info.source}: {error}") from error


def _evaluated(form: str, names: list[str], data: str | None, eps: str | float) -> dict[str, Any]:
    """The sections of settings that evaluation reads, in place of those of a training."""
    # Without data the run is like one that was trained on images without labels: evaluation has to be told.
    own = {"source": form, "shots": 0, "class_names": names} if data is None else {"source": data, "shots": "all"}
    raw = {"data": own, "train": {"eps": eps}}
    recorded(raw, {"data.source": "--data", "train.eps": "--eps"})  # before anything large is read
    return raw
