"""Small models as files, with the specs that a repository would read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from offramp_server.model_spec import EngineSettings, ModelSpec, TensorSpec
from onnx import TensorProto, helper
from torch import nn

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
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


class Convolutional(nn.Module):
    """Convolution, batch norm, ReLU in place, linear: [batch, 1, 8, 8] to [batch, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(x).mean((2, 3)))
        return scores


class AddSub(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def convolutional() -> nn.Module:
    """Always with the same weights."""
    return randomise(Convolutional())


def randomise(model: nn.Module) -> nn.Module:
    """Seeded statistics for batch norms, which are the identity otherwise; in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.3, generator)
    for norm in (layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def tensor_spec(text: str) -> TensorSpec:
    """`"x FP32 -1 8"`: name, datatype, dims."""
    name, datatype, *dims = text.split()
    return TensorSpec(name, datatype, tuple(map(int, dims)))


def model_spec(
    path: Path, inputs: Sequence[str], outputs: Sequence[str], max_batch_size: int = 16, **fields: Any
) -> ModelSpec:
    settings = {key: fields.pop(key) for key in ("backend", "device", "precision") if key in fields}
    return ModelSpec(
        name=path.stem,
        version=1,
        path=path,
        format=path.suffix[1:],
        max_batch_size=max_batch_size,
        inputs=tuple(map(tensor_spec, inputs)),
        outputs=tuple(map(tensor_spec, outputs)),
        engine=EngineSettings(**settings),
        **fields,
    )


def export_pt2(
    path: Path, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, batch: int = 16
) -> Path:
    """Every tensor's first dimension is the batch; `batch=0` exports fixed shapes."""
    dim = torch.export.Dim("batch", min=1, max=max(batch, 2))

    def dynamic(value: Any) -> Any:
        return {0: dim} if isinstance(value, torch.Tensor) else None

    shapes = torch.utils._pytree.tree_map(dynamic, (args, kwargs or {}))
    flat = (*shapes[0], *shapes[1].values()) if batch else None
    torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=flat), path)
    return path


def onnx_file(
    path: Path, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]]
) -> Path:
    """A graph without weights; tensors are written as in `tensor_spec`, the batch dimension left out."""
    graph = helper.make_graph(
        [helper.make_node(operator, ins, outs) for operator, ins, outs in nodes],
        "graph",
        [_value(text) for text in inputs],
        [_value(text) for text in outputs],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def _value(text: str) -> onnx.ValueInfoProto:
    name, datatype, *dims = text.split()
    shape = ["batch", *(f"{name}{at}" if dim == "-1" else int(dim) for at, dim in enumerate(dims))]
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)
