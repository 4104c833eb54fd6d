"""Export: a finished run as files that other programs run, checked against the original before they are kept.

import apd

apd.export.onnx("runs/photos", "photos.onnx")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from apd.util.files import AnyPath

if TYPE_CHECKING:
    from apd.export.exported import Exported
    from apd.export.options import ExportOptions
    from apd.export.robust_clip import RobustCLIP

__all__ = ["RobustCLIP", "huggingface", "onnx", "open_clip", "torch"]


def onnx(run: AnyPath, path: AnyPath, **options: Unpack[ExportOptions]) -> Exported:
    """Export a run as an ONNX graph from pixels in [0,1] to logits.

    Args:
        run: the run folder.
        path: the file, such as ``photos.onnx``; with ``open_vocabulary`` a folder. ``photos.onnx.json`` beside it says how
            images are made ready and what the logits stand for.
        options: see `apd.export.settings.ExportSettings`.

    Raises:
        InputError: no finished run, an output that is there already, a missing extra.
        ApdError: the exported model gives other logits; nothing is written then.

    Example:
        >>> import apd
        >>> apd.export.onnx("runs/photos", "photos.onnx").max_difference  # doctest: +SKIP
    """
    return _export("onnx", run, path, options)


def torch(run: AnyPath, path: AnyPath, **options: Unpack[ExportOptions]) -> Exported:
    """Export a run as a program of `torch.export`; arguments and errors as for `onnx`.

    Example:
        >>> import apd, torch
        >>> apd.export.torch("runs/photos", "photos.pt2")  # doctest: +SKIP
        >>> torch.export.load("photos.pt2").module()(torch.rand(5, 3, 224, 224))  # doctest: +SKIP
    """
    return _export("torch", run, path, options)


def huggingface(run: AnyPath, path: AnyPath, **options: Unpack[ExportOptions]) -> Exported:
    """Export a run as a folder for `RobustCLIP` and the Hugging Face hub; arguments and errors as for `onnx`.

    Where the prompts can be baked into a plain CLIP model, transformers loads the folder without this package; with visual
    tokens it does with ``trust_remote_code=True``, by code in the folder.

    Example:
        >>> import apd
        >>> apd.export.huggingface("runs/photos", "photos")  # doctest: +SKIP
        >>> apd.export.RobustCLIP.from_pretrained("photos").push_to_hub("me/photos")  # doctest: +SKIP
    """
    return _export("huggingface", run, path, options)


def open_clip(run: AnyPath, path: AnyPath, **options: Unpack[ExportOptions]) -> Exported:
    """Export a run as a folder for open_clip: weights, configuration and class features; as for `onnx`.

    With visual tokens the folder carries a module that loads it.

    Raises:
        InputError: also for a SigLIP, and for learned text with ``open_vocabulary``.
    """
    return _export("open_clip", run, path, options)


def __getattr__(name: str) -> Any:
    if name == "RobustCLIP":  # not at the top, so that `apd --help` does not wait for torch
        from apd.export.robust_clip import RobustCLIP

        return RobustCLIP
    raise AttributeError(f"module 'apd.export' has no attribute {name!r}")


def _export(form: str, run: AnyPath, path: AnyPath, options: ExportOptions) -> Exported:
    from apd.export.exported import export_run

    return export_run(form, run, path, options)
