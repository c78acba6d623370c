"""Writing an exported program as `.pt2` or `.onnx`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from offramp_common.extras import needs_extra
from torch.export import ExportedProgram

from offramp_compression.errors import ExportError
from offramp_compression.export.program import Names

Format: TypeAlias = Literal["pt2", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)

# Protocol buffers end at 2 GiB; beyond it weights need a file of their own.
_LARGEST_ONNX = 2**31 - 2**24


def write_program(program: ExportedProgram, names: Names, format: Format, path: Path) -> None:
    """Raises ExportError if torch cannot write the program in that format."""
    if format == "pt2":
        torch.export.save(program, path)
    else:
        write_onnx(program, names, path)


def torch_of(format: Format) -> Mapping[str, str]:
    """The version of torch that a file of this format is meant for; empty where it does not matter.

    A .pt2 is torch's own, and another version need not read it.
    """
    return {"torch": torch.__version__.partition("+")[0]} if format == "pt2" else {}


def write_onnx(program: ExportedProgram, names: Names, path: Path) -> None:
    """As ONNX with the inputs and outputs called as in `names`.

    Raises ExportError for an operator that has no counterpart in ONNX, MissingExtra without onnxscript.
    """
    _check_size(program)
    with needs_extra("compression", "exporting to ONNX"):
        import onnxscript  # noqa: F401
    try:
        with _exporter_noise_hidden():
            made = torch.onnx.export(program, (), dynamo=True, external_data=False, verbose=False)
            assert made is not None
            _rename(made.model.graph, names)
            made.save(path, external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"torch cannot write the network as ONNX: {reason}; write it as .pt2") from error


def _rename(graph: Any, names: Names) -> None:
    """The exporter's own renaming overlooks that an inner value may be called so already, such as "embedding"."""
    outside = {*names.inputs, *names.outputs}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*graph.inputs, *inner, *graph.initializers.values()):
        if value.name in outside:
            value.name = f"{value.name}_inner"
    for values, wanted in ((graph.inputs, names.inputs), (graph.outputs, names.outputs)):
        for value, name in zip(values, wanted, strict=True):
            value.name = name


def _check_size(program: ExportedProgram) -> None:
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _LARGEST_ONNX:
        raise ExportError(f"the network's weights have {size} bytes and one .onnx file holds 2 GiB; write it as .pt2")


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
