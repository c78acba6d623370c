"""Writing an exported program as `.pt2` or `.onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from offramp_common import torch_onnx
from offramp_common.extras import needs_extra
from torch.export import ExportedProgram

from offramp_compression.errors import ExportError
from offramp_compression.export.program import Names

Format: TypeAlias = Literal["pt2", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)


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
    try:
        with needs_extra("compression", "exporting to ONNX"):
            torch_onnx.write_onnx(program, names.inputs, names.outputs, path)
    except torch_onnx.NotInOnnx as error:
        raise ExportError(f"{error}; write it as .pt2") from error
