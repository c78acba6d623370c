"""Floating-point operations of one call: a multiplication and an addition count as two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@torch.inference_mode()
def of_module(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Of the convolutions, matrix products and attention of one forward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def of_onnx(path: Path, inputs: Sequence[NDArray[Any]]) -> int | None:
    """The same of an ONNX model, from the shapes that ONNX infers; None where these stay open."""

    graph = _with_shapes(path, inputs).graph
    shapes = {each.name: _shape(each) for each in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {each.name: tuple(each.dims) for each in graph.initializer}
    counts = [_of_node(node, shapes) for node in graph.node if node.op_type in _COUNTED]
    return None if any(count is None for count in counts) else sum(count or 0 for count in counts)


_COUNTED = ("Conv", "Gemm", "MatMul")


def _with_shapes(path: Path, inputs: Sequence[NDArray[Any]]) -> Any:
    import onnx

    model = onnx.load(path, load_external_data=False)
    for declared, given in zip(model.graph.input, inputs, strict=False):
        for dim, length in zip(declared.type.tensor_type.shape.dim, given.shape, strict=True):
            dim.dim_value = length
    # What was inferred for an open batch would stand in the way of the fixed one.
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _shape(value: Any) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _of_node(node: Any, shapes: dict[str, tuple[int, ...] | None]) -> int | None:
    first, second, result = shapes.get(node.input[0]), shapes.get(node.input[1]), shapes.get(node.output[0])
    if first is None or second is None or result is None:
        return None
    if node.op_type == "Conv":
        # Every element of the result is a sum over one filter.
        return 2 * math.prod(result) * math.prod(second[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(result) * (first[0] if transposed else first[-1])
