"""Small model files for tests. Folders are made as needed; an export costs time only once in a process."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

# Opset 18 and IR 9 are read by every ONNX Runtime that is supported.
_OPSET = 18
_IR_VERSION = 9

ADD_SUB_TOML = """
[[inputs]]
name = "INPUT0"
[[inputs]]
name = "INPUT1"
[[outputs]]
name = "OUTPUT0"
[[outputs]]
name = "OUTPUT1"
"""


class AddSub(torch.nn.Module):
    """Two tensors to their sum and their difference."""

    def forward(self, input0: torch.Tensor, input1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return input0 + input1, input0 - input1


class Linear(torch.nn.Module):
    """FP32[batch, inputs] to FP32[batch, outputs]; row i of the weight is i + 1, the bias is 0.5."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(1.0, outputs + 1)[:, None].expand(outputs, inputs))
            self.layer.bias.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


class Sequence2(torch.nn.Module):
    """FP32[batch, length, 4] and a mask FP32[batch, length] to FP32[batch, 4] and FP32[batch, length]."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (tokens * mask[:, :, None]).sum(1), tokens.sum(2)


def export_add_sub(
    path: Path, datatype: torch.dtype = torch.int32, *, size: int = 16, max_batch: int | None = 32, toml: bool = True
) -> Path:
    """`AddSub` over [batch, size]; `max_batch` None: a static first dimension of 1.

    With `toml`, and where the path is MODEL/VERSION/model.pt2, a model.toml names its tensors INPUT0, INPUT1, OUTPUT0
    and OUTPUT1: torch.export itself lower-cases the arguments' names and forgets the results'.
    """
    _write(path, _add_sub(datatype, size, max_batch))
    if toml:
        (path.parent.parent / "model.toml").write_text(ADD_SUB_TOML)
    return path


def export_linear(path: Path, *, inputs: int = 4, outputs: int = 3, max_batch: int | None = 32) -> Path:
    """`Linear`; `max_batch` None: a static first dimension of 1."""
    return _write(path, _linear(inputs, outputs, max_batch))


def export_sequence(path: Path, *, max_batch: int = 8, max_length: int = 64) -> Path:
    """`Sequence2`: both inputs share a variable length."""
    return _write(path, _sequence(max_batch, max_length))


def export_module(module: torch.nn.Module, args: Any, **options: Any) -> bytes:
    """The bytes of `torch.export.save` of any module."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, args, **options), file)
    return file.getvalue()


def write_add_sub_onnx(path: Path, datatype: str = "INT32", *, size: int = 16, batch: str | int = "batch") -> Path:
    """The twin of `export_add_sub`, its tensors named INPUT0, INPUT1, OUTPUT0 and OUTPUT1."""
    names = ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    left, right, total, difference = (_value(name, datatype, [batch, size]) for name in names)
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    return _write_onnx(path, nodes, [left, right], [total, difference])


def write_linear_onnx(path: Path, *, inputs: int = 4, outputs: int = 3, external: str = "") -> Path:
    """The twin of `export_linear`; `external` is the file beside it that holds the weight, "" for none."""
    weight = np.repeat(np.arange(1, outputs + 1, dtype=np.float32)[None, :], inputs, axis=0)
    initializers = [
        onnx.numpy_helper.from_array(weight, "weight"),
        onnx.numpy_helper.from_array(np.full(outputs, 0.5, np.float32), "bias"),
    ]
    if external:
        _make_external(path, initializers[0], external)
    return _write_onnx(
        path,
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])],
        [_value("x", "FP32", ["batch", inputs])],
        [_value("y", "FP32", ["batch", outputs])],
        initializers,
    )


def write_identity_onnx(path: Path, datatype: str = "FP32", dims: Sequence[str | int | None] = ("batch", 4)) -> Path:
    """x -> y of any datatype, strings (BYTES) included. A dimension is a size, a name, or None."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _write_onnx(path, [node], [_value("x", datatype, dims)], [_value("y", datatype, dims)])


def write_sequence_onnx(path: Path) -> Path:
    """FP32[batch, length, 4] -> FP32[batch, 4], the sum over a variable length."""
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    node = helper.make_node("ReduceSum", ["tokens", "axes"], ["total"], keepdims=0)
    inputs = [_value("tokens", "FP32", ["batch", "length", 4])]
    return _write_onnx(path, [node], inputs, [_value("total", "FP32", ["batch", 4])], [axes])


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _batch(max_batch: int | None) -> dict[int, torch.export.Dim]:
    return {} if max_batch is None else {0: torch.export.Dim("batch", min=1, max=max_batch)}


@functools.cache
def _add_sub(datatype: torch.dtype, size: int, max_batch: int | None) -> bytes:
    example = torch.zeros(1 if max_batch is None else 2, size, dtype=datatype)
    batch = _batch(max_batch)
    return export_module(AddSub(), (example, example.clone()), dynamic_shapes=(batch, batch))


@functools.cache
def _linear(inputs: int, outputs: int, max_batch: int | None) -> bytes:
    example = torch.zeros(1 if max_batch is None else 2, inputs)
    return export_module(Linear(inputs, outputs).eval(), (example,), dynamic_shapes=(_batch(max_batch),))


@functools.cache
def _sequence(max_batch: int, max_length: int) -> bytes:
    dims = {**_batch(max_batch), 1: torch.export.Dim("length", min=1, max=max_length)}
    example = (torch.zeros(2, 8, 4), torch.zeros(2, 8))
    return export_module(Sequence2(), example, dynamic_shapes=(dims, dims))


def _value(name: str, datatype: str, dims: Sequence[str | int | None]) -> Any:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], list(dims))


def _write_onnx(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], initializers: Sequence[Any] = ()
) -> Path:
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return _write(path, model.SerializeToString())


def _make_external(path: Path, tensor: Any, location: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / location).write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
