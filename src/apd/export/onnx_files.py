"""ONNX files: written from a traced program, quantised, and run."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from apd.errors import InputError
from apd.export.base import Runner

_LARGEST = 2**31
"""Bytes of one ONNX file, which is a protocol buffer."""


def to_onnx(program: ExportedProgram, file: Path, names: tuple[str, str]) -> None:
    """Translate a program to one ONNX file.

    Args:
        program: of one input and one output, whose first dimension is free.
        file: where to.
        names: of input and output.

    Raises:
        InputError: more weights than one file holds.
    """
    size = sum(
        t.numel() * t.element_size()
        for t in (*program.state_dict.values(), *program.constants.values())
        if isinstance(t, Tensor)
    )
    if size >= _LARGEST:
        raise InputError(f"The model has {size / 2**30:.1f} GB of weights, and an ONNX file holds 2: use --to torch.")
    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    before = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(
                program, input_names=names[:1], output_names=names[1:], external_data=False, verbose=False
            )
        assert graph is not None
        for node in graph.model.graph.all_nodes():  # each carries a traceback with this machine's paths
            node.metadata_props.clear()
        graph.save(str(file), external_data=False)
    finally:
        for logger, level in zip(quiet, before, strict=True):
            logger.setLevel(level)


def quantise(file: Path) -> None:
    """Turn the weights of matrix products into 8-bit integers; activations are quantised as they come.

    The product with the class features, the last one, stays in float32: it decides between classes that are near each other.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = [node.name for node in onnx.load(file).graph.node if node.op_type in ("MatMul", "Gemm")]
    whole = file.with_suffix(".float32.onnx")
    file.rename(whole)
    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # the library advises on the root logger
        quantize_dynamic(
            whole,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # eight bits overflow on CPUs with AVX2 or AVX-512 that lack VNNI
            weight_type=QuantType.QInt8,
            nodes_to_exclude=products[-1:],
        )
    finally:
        logging.root.setLevel(level)
    whole.unlink()


def open_onnx(file: Path) -> Runner:
    """Open an ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
