"""Made-up inputs for a model of which only the declaration is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from offramp_client import TensorInfo
from offramp_client.pictures import encoded
from open_inference.tensor import BF16, BYTES, NUMPY_TYPES, Array, Tensor

from offramp_server.cli.declared import Declared
from offramp_server.cli.failures import UsageError

Inputs: TypeAlias = dict[str, Tensor]

# What a variable dimension is unless the caller says.
VARIABLE_LENGTH = 8
# Height and width.
PICTURE_SIZE = (224, 224)


def random_inputs(
    model: Declared, batch_size: int, shapes: Mapping[str, Sequence[int]], random: np.random.Generator
) -> Inputs:
    """Numbers from 0 to 1, integers 0 and 1 (an index into any table), short texts, and pictures for a model that takes
    such. `shapes` are those of one item, by input. Raises UsageError for a shape of an input that does not exist or has
    other dimensions."""
    unknown = shapes.keys() - model.inputs.keys()
    if unknown:
        raise UsageError(f'there is no input "{min(unknown)}"; inputs: {", ".join(model.inputs)}')
    if batch_size > 1 and not model.batched:
        raise UsageError(f'--batch-size {batch_size}: model "{model.name}" has no batch dimension; leave it out')
    inputs = {}
    for info in model.inputs.values():
        dims = _dims(info, model.item_dims(info), shapes.get(info.name))
        shape = (batch_size, *dims) if model.batched else dims
        values = _pictures(shape, random) if model.preprocess == "image" else _values(info.datatype, shape, random)
        inputs[info.name] = Tensor.from_numpy(info.name, values, info.datatype)
    return inputs


def _dims(info: TensorInfo, declared: Sequence[int], given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        return tuple(VARIABLE_LENGTH if length < 0 else length for length in declared)
    fits = len(given) == len(declared) and all(d in (-1, g) for d, g in zip(declared, given, strict=True))
    if not fits:
        raise UsageError(f'--shape: one item of "{info.name}" is {list(declared)} (-1: any length), got {list(given)}')
    return tuple(given)


def _pictures(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """PNG files of noise."""
    pixels = random.integers(0, 256, (*PICTURE_SIZE, 3), dtype=np.uint8)
    return np.full(shape, encoded(pixels), dtype=object)


def _values(datatype: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if datatype == BYTES:
        return np.full(shape, b"offramp", dtype=object)
    if datatype == BF16 or NUMPY_TYPES[datatype].kind == "f":
        return random.random(shape, dtype=np.float32)
    return random.integers(0, 2, shape).astype(NUMPY_TYPES[datatype])
