"""What a model or route says of many examples, as arrays."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from open_inference.tensor import BF16, NUMPY_TYPES, Array, Tensor

from offramp_server.cli.asking import Asked, Asker
from offramp_server.cli.failures import UsageError, usage_errors

# Requests under way at a time: enough that a worker never waits for the next one.
WINDOW = 4


async def answers_of(
    asker: Asker, asked: Asked, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> Mapping[str, Array]:
    """These outputs for `inputs`, N first in each of both, by name: asked in batches as large as they may be."""
    batches = batches_of(inputs, asked.endpoint.max_batch_size)
    parts = await answers_to(asker, asked, batches, outputs)
    return {name: _joined(asked, name, [part[name] for part in parts]) for name in outputs}


def batches_of(inputs: Mapping[str, Array], size: int) -> list[Mapping[str, Array]]:
    """Parts of at most `size` items; with size 0, where there is no batch dimension, one by one."""
    count = len(next(iter(inputs.values())))
    starts = range(0, count, size or 1)
    return [{name: array[start : start + (size or 1)] for name, array in inputs.items()} for start in starts]


async def answers_to(
    asker: Asker, asked: Asked, batches: Sequence[Mapping[str, Array]], outputs: Sequence[str]
) -> list[Mapping[str, Array]]:
    """As `answers_of`, of each batch by itself."""
    window = asyncio.Semaphore(WINDOW)
    batched = bool(asked.endpoint.max_batch_size)

    async def ask(batch: Mapping[str, Array]) -> Mapping[str, Array]:
        async with window:
            answer = await asker.infer(asked.target, _tensors(asked, batch))
        found = {tensor.name: tensor.numpy() for tensor in answer}
        return {name: found[name] if batched else found[name][None] for name in outputs}

    tasks = [asyncio.create_task(ask(batch)) for batch in batches]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _tensors(asked: Asked, batch: Mapping[str, Array]) -> list[Tensor]:
    batched = bool(asked.endpoint.max_batch_size)
    with usage_errors():
        arrays = {name: array if batched else array[0] for name, array in batch.items()}
        return [
            Tensor.from_numpy(info.name, _scaled(arrays[info.name], info.datatype), info.datatype)
            for info in asked.endpoint.inputs
        ]


def _scaled(array: Array, datatype: str) -> Array:
    """Pixels are numbers from 0 to 1 to a model that takes floating-point numbers."""
    floating = datatype == BF16 or (datatype in NUMPY_TYPES and NUMPY_TYPES[datatype].kind == "f")
    return array.astype(np.float32) / 255 if array.dtype == np.uint8 and floating else array


def _joined(asked: Asked, name: str, parts: Sequence[Array]) -> Array:
    try:
        return np.concatenate(parts)
    except ValueError:
        shapes = " and ".join(str(list(shape)) for shape in sorted({part.shape[1:] for part in parts}))
        raise UsageError(f'"{asked.target}" answers with output {name} of shapes {shapes}; expected one') from None
