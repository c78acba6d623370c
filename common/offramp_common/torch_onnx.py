"""An exported program written as an `.onnx` file, by torch's own exporter. Imports torch; needs onnxscript."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from offramp_common.errors import OfframpError

# Protocol buffers end at 2 GiB; beyond it weights need a file of their own.
_LARGEST_ONNX = 2**31 - 2**24


class NotInOnnx(OfframpError):
    """A program that cannot be written as one ONNX file. The message is a clause that says why."""


def write_onnx(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path) -> None:
    """Write `program` to `path` with its inputs and outputs called so, in order. All names have to differ.

    Raises NotInOnnx, or ModuleNotFoundError where onnxscript is not installed.
    """
    _check_size(program)
    import onnxscript  # noqa: F401

    try:
        with _exporter_noise_hidden():
            made = torch.onnx.export(program, (), dynamo=True, external_data=False, verbose=False)
            assert made is not None
            _rename(made.model.graph, inputs, outputs)
            made.save(path, external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise NotInOnnx(f"torch cannot write it as ONNX: {reason}") from error


def _rename(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """The exporter's own renaming overlooks that an inner value may be called so already, such as "embedding"."""
    outside = {*inputs, *outputs}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*graph.inputs, *inner, *graph.initializers.values()):
        if value.name in outside:
            value.name = f"{value.name}_inner"
    for values, wanted in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, wanted, strict=True):
            value.name = name


def _check_size(program: ExportedProgram) -> None:
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _LARGEST_ONNX:
        raise NotInOnnx(f"its weights have {size} bytes and one .onnx file holds 2 GiB")


@contextlib.contextmanager
def _exporter_noise_hidden() -> Iterator[None]:
    """Hide what torch 2.13's exporter says about itself: a deprecation in its own code, torchvision not being there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
