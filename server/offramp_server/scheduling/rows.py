"""Cut the outputs of a batch into the outputs of its requests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from open_inference.tensor import BYTES, Tensor, skip_bytes

from offramp_server.errors import ModelFailed
from offramp_server.scheduling.held import Keep, KeptBatch, held_rows


def split_rows(outputs: Sequence[Tensor], items: Sequence[int]) -> list[list[Tensor]]:
    """Copy each request's rows out of the batch's outputs; `items` are the rows of each request, in order.

    Raises ModelFailed if an output does not have one row for each row of the batch.
    """
    _check_rows(outputs, sum(items))
    if len(items) == 1:
        return [copy_whole(outputs)]
    columns = [_split_one(output, items) for output in outputs]
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in items]


def split_kept(
    outputs: Sequence[Tensor], items: Sequence[int], wanted: Sequence[int], keep: Keep, batch: KeptBatch, home: str
) -> list[list[Tensor]]:
    """Like `split_rows` for a batch of which something was kept: who wanted that gets `Held` in its place. `wanted`
    has, for each request, a bit for each output that it wanted to be kept."""
    _check_rows(outputs, sum(items))
    answers: list[list[Tensor]] = [[] for _ in items]
    for position, output in enumerate(outputs):
        copied = None if keep.only_kept >> position & 1 else _split_one(output, items)
        start = 0
        for at, count in enumerate(items):
            if copied is None or wanted[at] >> position & 1:
                answers[at].append(held_rows(output, position, batch, home, start, count))
            else:
                answers[at].append(copied[at])
            start += count
    return answers


def _check_rows(outputs: Sequence[Tensor], total: int) -> None:
    for output in outputs:
        if not output.shape or output.shape[0] != total:
            raise ModelFailed(
                f'output "{output.name}": expected {total} rows for a batch of {total}, got shape {list(output.shape)}'
            )


def copy_whole(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Copy the outputs of a batch that holds a single request."""
    return [Tensor(output.name, output.datatype, output.shape, bytes(output.data)) for output in outputs]


def _split_one(output: Tensor, items: Sequence[int]) -> list[Tensor]:
    view = memoryview(output.data)
    row_shape = output.shape[1:]
    tensors = []
    start = 0
    for count in items:
        stop = _end_of_rows(output, view, start, count)
        tensors.append(Tensor(output.name, output.datatype, (count, *row_shape), bytes(view[start:stop])))
        start = stop
    return tensors


def _end_of_rows(output: Tensor, view: memoryview, start: int, count: int) -> int:
    if output.datatype == BYTES:
        return skip_bytes(view, start, count * math.prod(output.shape[1:]))
    return start + count * (len(view) // output.shape[0])
