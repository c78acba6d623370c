"""Running a model before it counts as ready: made-up batches, and how long each size takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from open_inference.tensor import BF16, BYTES, NUMPY_TYPES, Tensor

from offramp_server.errors import LoadError
from offramp_server.model_spec import VARIABLE, ModelSpec, TensorSpec
from offramp_server.workers.engines.base import Engine

_SEED = 0
_Integers: TypeAlias = Callable[[tuple[int, ...], np.random.Generator], npt.NDArray[Any]]


def warm_up(engine: Engine, spec: ModelSpec) -> dict[int, float]:
    """Run every batch size of `spec.warmup` (default: 1 and the largest) and return seconds per warm batch, by items.

    The first run of each size pays for allocations and compiled primitives and is not counted; the fastest of
    `iterations` more is; 0 asks for no warm-up. A model without a batch dimension counts as one item. Raises LoadError
    where a run fails.
    """
    if spec.warmup.iterations == 0:
        return {}
    return {items: _seconds(engine, spec, items) for items in batch_sizes(spec)}


def batch_sizes(spec: ModelSpec) -> list[int]:
    """What is warmed up, small first."""
    if not spec.batches:
        return [1]
    return sorted(set(spec.warmup.batch_sizes or (1, spec.max_batch_size)))


def sample_inputs(spec: ModelSpec, items: int) -> list[Tensor]:
    """Inputs that any model should bear: integers are zero (a valid index), floats small, strings short.

    The same call always returns the same values.
    """
    generator = np.random.default_rng(_SEED)
    return [_sample(spec, tensor, items, generator, _zeros) for tensor in spec.inputs]


def telling_inputs(spec: ModelSpec, items: int) -> list[Tensor]:
    """Inputs whose answers tell engines apart: integers are zeros and ones, as in a mask, and not all alike.

    A model that knows one index only may not bear them. The same call always returns the same values.
    """
    generator = np.random.default_rng(_SEED)
    return [_sample(spec, tensor, items, generator, _bits) for tensor in spec.inputs]


def _seconds(engine: Engine, spec: ModelSpec, items: int) -> float:
    inputs = sample_inputs(spec, items)
    try:
        engine.execute(inputs)
        return min(_timed(engine, inputs) for _ in range(spec.warmup.iterations))
    except Exception as error:
        shapes = ", ".join(f'"{tensor.name}" {tensor.datatype}{list(tensor.shape)}' for tensor in inputs)
        raise LoadError(
            f'model "{spec.name}": warm-up with batch size {items} ({shapes}) failed: {error}; '
            "[warmup] of model.toml chooses other batch sizes or another variable_dim; iterations = 0 leaves it out"
        ) from error


def _timed(engine: Engine, inputs: list[Tensor]) -> float:
    started = time.perf_counter()
    engine.execute(inputs)
    return time.perf_counter() - started


def _sample(
    spec: ModelSpec, tensor: TensorSpec, items: int, generator: np.random.Generator, integers: _Integers
) -> Tensor:
    dims = tuple(_dim(spec, tensor, position) for position in range(len(tensor.dims)))
    shape = (items, *dims) if spec.batches else dims
    datatype = None if tensor.datatype == BYTES else tensor.datatype
    return Tensor.from_numpy(tensor.name, _values(tensor.datatype, shape, generator, integers), datatype)


def _dim(spec: ModelSpec, tensor: TensorSpec, position: int) -> int:
    if tensor.dims[position] != VARIABLE:
        return tensor.dims[position]
    bounds = tensor.ranges[position] if position < len(tensor.ranges) else None
    low, high = bounds or (1, spec.warmup.variable_dim)
    return min(max(spec.warmup.variable_dim, low), high)


def _values(
    datatype: str, shape: tuple[int, ...], generator: np.random.Generator, integers: _Integers
) -> npt.NDArray[Any]:
    if datatype == BYTES:
        return np.full(shape, b"warm-up", dtype=object)
    if datatype == BF16:
        return 0.1 * generator.standard_normal(shape, dtype=np.float32)
    dtype = NUMPY_TYPES[datatype]
    if dtype.kind == "f":
        return (0.1 * generator.standard_normal(shape)).astype(dtype)
    return integers(shape, generator).astype(dtype)


def _zeros(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[Any]:
    return np.zeros(shape, dtype=np.uint8)


def _bits(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[Any]:
    bits = generator.integers(0, 2, shape, dtype=np.uint8)
    # A mask that lets nothing through makes numbers that are none.
    bits[..., :1] = 1
    return bits
