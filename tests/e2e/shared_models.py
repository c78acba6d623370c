"""The model repository that most end-to-end tests share."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from model_files import (
    ONNX_TYPES,
    export_add_sub,
    export_module,
    export_sequence,
    write_add_sub_onnx,
    write_identity_onnx,
    write_linear_onnx,
)

EAGER = '[engine]\nbackend = "torch-eager"\n'
LABELS = ("cat", "dog", "owl")
# FP32[-1, 4], x -> y. A request that its client gives up may be counted at any later time: nobody reads its counters.
GIVEN_UP = "given_up"
# In the order of the arguments and results of "every_type".
TORCH_TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}


def write_shared(folder: Path) -> None:
    """Everything that can be served; nothing here takes long to load."""
    for datatype in ONNX_TYPES:
        write_identity_onnx(folder / identity(datatype) / "1" / "model.onnx", datatype, ["batch", "n"])
    write_add_sub_onnx(folder / "add_sub_onnx" / "1" / "model.onnx")
    write_add_sub_onnx(folder / "comes_and_goes" / "1" / "model.onnx")
    write_labelled(folder)
    # No batch dimension, for the first one does not vary.
    write_identity_onnx(folder / "unbatched" / "1" / "model.onnx", "FP32", [2, "n"])
    write_identity_onnx(folder / "expires" / "1" / "model.onnx")
    write_identity_onnx(folder / GIVEN_UP / "1" / "model.onnx")
    _write_pt2(folder)


def _write_pt2(folder: Path) -> None:
    export_add_sub(folder / "add_sub_pt2" / "1" / "model.pt2")
    export_sequence(folder / "sequence" / "1" / "model.pt2")
    (folder / "every_type" / "1").mkdir(parents=True)
    (folder / "every_type" / "1" / "model.pt2").write_bytes(_every_type())
    for model in ("add_sub_pt2", "sequence", "every_type"):
        # `auto` would compile, to see whether that is faster.
        with (folder / model / "model.toml").open("a") as toml:
            toml.write(EAGER)


def identity(datatype: str) -> str:
    """The name of the model that gives back what it got, [-1, -1]: x -> y."""
    return f"identity_{datatype.lower()}"


def write_labelled(folder: Path) -> None:
    """FP32[-1, 4] to FP32[-1, 3]: output i is (i + 1) times the sum of the row plus a half."""
    write_linear_onnx(folder / "labelled" / "1" / "model.onnx")
    labels = ", ".join(f'"{label}"' for label in LABELS)
    (folder / "labelled" / "model.toml").write_text(f'[[outputs]]\nname = "y"\nlabels = [{labels}]\n')


class EveryType(torch.nn.Module):
    """Gives back what it got, one tensor of each datatype."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)


def _every_type() -> bytes:
    tensors = tuple(torch.zeros(2, 3, dtype=dtype) for dtype in TORCH_TYPES.values())
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    return export_module(EveryType(), tensors, dynamic_shapes=(tuple(batch for _ in tensors),))


def write_manifest(folder: Path) -> None:
    """List a model's files, as `sha256sum` does."""
    files = sorted(path for path in folder.rglob("model.*") if path.is_file())
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}\n" for file in files]
    (folder / "manifest.sha256").write_text("".join(lines))


class _Payload:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def make_hostile(path: Path, marker: Path) -> None:
    """Add sample inputs to a .pt2 that make the file `marker` when they are unpickled, as torch's own loader does."""
    pickled = io.BytesIO()
    torch.save(((_Payload(f"echo ran > '{marker}'"),), {}), pickled)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    [sample_inputs] = [name for name in entries if "/sample_inputs/" in f"/{name}" and name.endswith(".pt")]
    entries[sample_inputs] = pickled.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
