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
    asker: Asker, asked: Asked, inputs: Sequence[Array], outputs: Sequence[str]
) -> Mapping[str, Array]:
    """These outputs, N first in each, for `inputs` in the order of the endpoint's, N first in each: sent in batches as
    large as they may be, or one by one where there is no batch dimension."""
    size = asked.endpoint.max_batch_size
    window = asyncio.Semaphore(WINDOW)

    async def ask(start: int) -> Mapping[str, Array]:
        rows = slice(start, start + size) if size else start
        async with window:
            answer = await asker.infer(asked.target, _tensors(asked, [array[rows] for array in inputs]))
        found = {tensor.name: tensor.numpy() for tensor in answer}
        return {name: found[name] if size else found[name][None] for name in outputs}

    tasks = [asyncio.create_task(ask(start)) for start in range(0, len(inputs[0]), size or 1)]
    try:
        parts = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return {name: _joined(asked, name, [part[name] for part in parts]) for name in outputs}


def _tensors(asked: Asked, arrays: Sequence[Array]) -> list[Tensor]:
    with usage_errors():
        return [
            Tensor.from_numpy(info.name, _scaled(array, info.datatype), info.datatype)
            for info, array in zip(asked.endpoint.inputs, arrays, strict=True)
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
