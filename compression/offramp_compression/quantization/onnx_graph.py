"""Which nodes of an ONNX graph are which layers of the network, and which can follow them into integers."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import onnx

# Where torch's exporter notes the modules that a node comes from.
_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# Operators that compute on integers, or only move them, if what they take is quantised. Others would need rounding that
# gains nothing; adding an attention mask of -3e38 in eight bits would leave nothing of the scores.
_FOLLOWING = frozenset(
    {"Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Flatten", "Reshape", "Transpose"}
)


def layer_nodes(exported: onnx.ModelProto, prepared: onnx.ModelProto, layers: Iterable[str]) -> dict[str, list[str]]:
    """The nodes of `prepared`, by name, that multiply by the constant weight of each of the `layers`, if any do.

    `exported` is the model as torch wrote it. ONNX Runtime drops the notes of torch's exporter and keeps names.
    """
    known = set(layers)
    layer_of = {node.name: _layer(node, known) for node in exported.graph.node if node.op_type in _WEIGHTED}
    constants = {tensor.name for tensor in prepared.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in prepared.graph.node:
        if node.op_type in _WEIGHTED and node.input[1] in constants:
            layer = layer_of.get(node.name) or _layer(node, known)
            if layer:
                found.setdefault(layer, []).append(node.name)
    return found


def quantized_nodes(model: onnx.ModelProto, weighted: Collection[str]) -> list[str]:
    """The `weighted` nodes, and those after them all of whose changing inputs come from such nodes, by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    chosen: list[str] = []
    integers: set[str] = set()
    for node in model.graph.node:
        if node.name in weighted or _follows(node, integers, constants):
            chosen.append(node.name)
            integers.update(node.output)
    return chosen


def operators(model: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """The kinds of the nodes called `names`."""
    return sorted({node.op_type for node in model.graph.node if node.name in names})


def _follows(node: onnx.NodeProto, integers: set[str], constants: set[str]) -> bool:
    if node.op_type not in _FOLLOWING:
        return False
    changing = [name for name in node.input if name and name not in constants]
    # A constant summand (a bias) would be rounded to the scale of an activation.
    if node.op_type == "Add" and len(changing) < 2:
        return False
    return bool(changing) and all(name in integers for name in changing)


def _layer(node: onnx.NodeProto, known: Collection[str]) -> str:
    named: str = node.input[1].removesuffix(".weight")
    if named in known:
        return named
    scopes = [scope for scope in _scopes(node) if scope in known]
    return scopes[-1] if scopes else ""


def _scopes(node: Any) -> list[str]:
    notes: Mapping[str, str] = {entry.key: entry.value for entry in node.metadata_props}
    return [str(scope) for scope in ast.literal_eval(notes.get(_SCOPES, "[]"))]
