"""Cutting a batch along its first dimension, and putting answers together again, wherever their elements are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from open_inference.tensor import BYTES, Tensor, skip_bytes

from offramp_server.errors import ModelFailed
from offramp_server.workers.kept import OnDevice


def halves(inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Two batches of about the same size, of one with at least two rows."""
    middle = (inputs[0].shape[0] + 1) // 2
    return [_rows(tensor, 0, middle) for tensor in inputs], [
        _rows(tensor, middle, tensor.shape[0]) for tensor in inputs
    ]


def joined(answers: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The outputs of several batches as those of one. Raises ModelFailed where they differ in more than their rows."""
    return [_joined(parts) for parts in zip(*answers, strict=True)]


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    if hasattr(tensor, "gather"):
        return cast(OnDevice, tensor).gather([(tensor, range(start, stop))])
    view = memoryview(tensor.data)
    if tensor.datatype == BYTES:
        row = math.prod(tensor.shape[1:])
        first = skip_bytes(view, 0, start * row)
        data = view[first : skip_bytes(view, first, (stop - start) * row)]
    else:
        size = len(view) // tensor.shape[0]
        data = view[start * size : stop * size]
    return Tensor(tensor.name, tensor.datatype, (stop - start, *tensor.shape[1:]), data)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    first = parts[0]
    if any((part.datatype, part.shape[1:]) != (first.datatype, first.shape[1:]) for part in parts):
        shapes = ", ".join(f"{part.datatype}{list(part.shape)}" for part in parts)
        raise ModelFailed(
            f'output "{first.name}": the batch was computed in parts for want of memory, and their answers ({shapes}) '
            "cannot be put together; smaller requests, or a smaller max_batch_size, are right"
        )
    if hasattr(first, "gather"):
        return cast(OnDevice, first).gather([(part, range(part.shape[0])) for part in parts])
    rows = sum(part.shape[0] for part in parts)
    return Tensor(first.name, first.datatype, (rows, *first.shape[1:]), b"".join(part.data for part in parts))
