"""What an `.onnx` file is: its inputs, outputs and external data. Weights that lie outside it are not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from offramp_common.errors import LoadError
from offramp_common.formats.source_model import Dimension, SourceModel, SourceTensor

# onnx.TensorProto.DataType
_DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
_ON_INTEGERS = ("QLinear", "QGemm", "QAttention")


def read_onnx(path: Path) -> SourceModel:
    """What the file says about itself. Raises LoadError."""
    model = _parse(path)
    graph = model.graph
    initialized = {tensor.name for tensor in graph.initializer}
    try:
        inputs = tuple(_tensor("input", value) for value in graph.input if value.name not in initialized)
        outputs = tuple(_tensor("output", value) for value in graph.output)
        external = tuple(sorted({_external(path, tensor) for tensor in _tensors(model) if _is_external(tensor)}))
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from None
    return SourceModel(
        path,
        "onnx",
        inputs,
        outputs,
        external,
        named=True,
        quantized=any(_quantizes(node.op_type) for node in graph.node),
        provenance=_provenance(model),
    )


def _parse(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise LoadError(f'{path}: reading .onnx needs {error.name}; install "offramp[server]"') from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        raise LoadError(f"{path}: not an ONNX model, or truncated") from None
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}") from None
    # Protobuf takes many byte sequences for a message without any known field.
    if not model.opset_import or not model.graph.output:
        raise LoadError(f"{path}: not an ONNX model: it has no graph, or does not say its opset")
    return model


def _quantizes(operator: str) -> bool:
    """QuantizeLinear, DynamicQuantizeLinear, QLinearConv, ConvInteger and their like, in any domain."""
    return "QuantizeLinear" in operator or operator.startswith(_ON_INTEGERS) or operator.endswith("Integer")


def _provenance(model: Any) -> dict[str, str]:
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {"onnx_opset": opsets, **({"producer": producer} if producer else {})}


def _tensor(kind: str, value: Any) -> SourceTensor:
    form = value.type.WhichOneof("value")
    if form != "tensor_type":
        raise LoadError(f'{kind} "{value.name}" is a {form or "value of no type"}; only tensors can be served')
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DATATYPES:
        raise LoadError(
            f'{kind} "{value.name}" is {_type_name(tensor.elem_type)}, which the protocol cannot carry; '
            f"expected one of {', '.join(_DATATYPES.values())}"
        )
    dimensions = tuple(map(_dimension, tensor.shape.dim)) if tensor.HasField("shape") else None
    return SourceTensor(value.name, _DATATYPES[tensor.elem_type], dimensions)


def _type_name(number: int) -> str:
    import onnx

    names = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return str(names.get(number, f"of ONNX type {number}"))


def _dimension(dim: Any) -> Dimension:
    # Some exporters write 0 or -1 for a dimension that varies.
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return Dimension(dim.dim_value)
    return Dimension(None, dim.dim_param or None)


def _tensors(model: Any) -> Iterator[Any]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def _is_external(tensor: Any) -> bool:
    # onnx.TensorProto.EXTERNAL
    return bool(tensor.data_location == 1)


def _external(model: Path, tensor: Any) -> Path:
    """The file with a tensor's data: inside the version's folder, there, and large enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = model.parent / location
    if not location or not path.resolve().is_relative_to(model.parent.resolve()) or path == model.parent:
        raise LoadError(f'tensor "{tensor.name}" has its data in "{location}"; expected a file in {model.parent}')
    if not path.is_file():
        raise LoadError(f'tensor "{tensor.name}" has its data in "{location}", which is missing')
    _check_extent(tensor.name, entries, path)
    return Path(path)


def _check_extent(name: str, entries: dict[str, str], path: Path) -> None:
    try:
        offset = int(entries.get("offset", 0))
        end = offset + int(entries.get("length", 0))
    except ValueError:
        raise LoadError(f'tensor "{name}" has an offset or a length that is not a number') from None
    size = path.stat().st_size
    if not 0 <= offset <= end:
        raise LoadError(f'tensor "{name}" starts at byte {offset} of "{path.name}" and ends at byte {end}')
    if end > size:
        raise LoadError(f'tensor "{name}" ends at byte {end} of "{path.name}", which has {size}')
