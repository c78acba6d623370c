"""A module as an exported program: its graph for any batch size, and what goes in and comes out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument

from offramp_compression.errors import ExportError

# The largest batch that an exported program takes; max_batch_size of model.toml may be anything up to it.
LARGEST_BATCH = 1024
VARIABLE = -1

# The Open Inference Protocol's names.
_DATATYPES = MappingProxyType(
    {
        torch.bool: "BOOL",
        torch.uint8: "UINT8",
        torch.int8: "INT8",
        torch.int16: "INT16",
        torch.int32: "INT32",
        torch.int64: "INT64",
        torch.float16: "FP16",
        torch.bfloat16: "BF16",
        torch.float32: "FP32",
        torch.float64: "FP64",
    }
)

# For each input, which of its dimensions beside the first vary, by position.
VariableDimensions: TypeAlias = Mapping[str, Sequence[int]]
NONE_VARY: VariableDimensions = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or an output: `dims` without the batch dimension, -1 where they vary."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """What forward's arguments and its results are called outside, in order, and which dimensions vary."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variable: VariableDimensions = field(default_factory=dict)


def text_lengths(names: Sequence[str], inputs: Sequence[Tensor]) -> VariableDimensions:
    """The second dimension of every input of token ids or masks, int64 [N, L]: texts have different lengths."""
    pairs = zip(names, inputs, strict=True)
    return {name: (1,) for name, tensor in pairs if tensor.dtype == torch.int64 and tensor.dim() == 2}


def capture(module: nn.Module, inputs: Sequence[Tensor], names: Names) -> ExportedProgram:
    """Export `module`, in evaluation mode, for batches of 1 to LARGEST_BATCH of inputs like `inputs`.

    Only shapes and datatypes of `inputs` matter; the first dimension is the batch. Raises ExportError, with torch's
    reason, for a module whose graph cannot be captured, or that does not take every batch size or does not bear that
    the dimensions in `names.variable` vary, and if `names` does not fit it.
    """
    if len(names.inputs) != len(inputs):
        raise ExportError(f"{len(inputs)} inputs are given and {len(names.inputs)} are named; name every one")
    pairs = zip(inputs, names.inputs, strict=True)
    example = tuple(_example(tensor, names.variable.get(name, ())) for tensor, name in pairs)
    try:
        program = torch.export.export(module, example, dynamic_shapes=_dynamic_shapes(module, names))
    except Exception as error:
        # torch has no common type for what it cannot capture.
        raise ExportError(
            f"the network cannot be exported for any batch size: {_first_line(error)}; forward must not look at values "
            f"or at the number of rows to decide what it does"
        ) from error
    # They would be pickled into the file, and no server wants a pickle.
    program.example_inputs = None
    return program


def describe(program: ExportedProgram, names: Names) -> Signature:
    """Raises ExportError if the program returns another number of tensors than `names` has, or another datatype than
    the protocol carries."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    results = [spec.arg for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    found = [argument.name for argument in results if isinstance(argument, TensorArgument)]
    if len(found) != len(names.outputs):
        raise ExportError(
            f"the network returns {len(found)} tensors and {len(names.outputs)} outputs are named "
            f"({', '.join(names.outputs)}); name every one"
        )
    return Signature(
        tuple(_info(name, values[node]) for name, node in zip(names.inputs, _inputs(program), strict=True)),
        tuple(_info(name, values[node]) for name, node in zip(names.outputs, found, strict=True)),
    )


def _example(tensor: Tensor, varying: Sequence[int]) -> Tensor:
    """Zeros of that shape, for a batch of two; at least two along what varies, as torch takes one for a constant."""
    sizes = [max(2, size) if position in varying else size for position, size in enumerate(tensor.shape)]
    return torch.zeros([2, *sizes[1:]], dtype=tensor.dtype)


def _inputs(program: ExportedProgram) -> tuple[str, ...]:
    return tuple(str(name) for name in program.graph_signature.user_inputs)


def _info(name: str, value: Tensor) -> TensorInfo:
    if value.dtype not in _DATATYPES:
        raise ExportError(
            f'"{name}" is {value.dtype}, which the protocol cannot carry; expected one of '
            f"{', '.join(_DATATYPES.values())}"
        )
    sizes: tuple[int | torch.SymInt, ...] = tuple(value.shape)
    if not sizes or not isinstance(sizes[0], torch.SymInt):
        raise ExportError(
            f'the first dimension of "{name}" ({list(sizes)}) does not follow the batch; expected one row for every '
            f"row of the input"
        )
    dims = tuple(VARIABLE if isinstance(size, torch.SymInt) else size for size in sizes[1:])
    return TensorInfo(name, _DATATYPES[value.dtype], dims)


def _dynamic_shapes(module: nn.Module, names: Names) -> tuple[Any, ...]:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    shapes = [
        {0: batch, **dict.fromkeys(names.variable.get(name, ()), torch.export.Dim.DYNAMIC)} for name in names.inputs
    ]
    plain = _plain_parameters(module)
    return tuple(shapes) if plain is None else (*shapes[:plain], tuple(shapes[plain:]))


def _plain_parameters(module: nn.Module) -> int | None:
    """How many arguments come before forward's `*args`; None: it has no such thing."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
