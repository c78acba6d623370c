"""Items of a request that go different ways: rows of tensors taken out and put together, as the bytes that they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from open_inference.tensor import BYTES, Tensor, skip_bytes

from offramp_adapters.routes.held import Held


class ShapesDiffer(ValueError):
    """Rows of different shapes cannot be put together."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of an answer, and which items of the request they are."""

    # All with a batch dimension.
    tensors: Sequence[Tensor]
    rows: Sequence[int]
    items: Sequence[int]


def take(tensors: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    """These rows, in this order. The bits stay what they are."""
    return [_take(tensor, rows) for tensor in tensors]


def merge(parts: Sequence[Part]) -> list[Tensor]:
    """One tensor for each name of the first part, its rows in the order of their items. Each item is in one part, and
    each part has tensors of the same names. Raises ShapesDiffer."""
    order = sorted(
        (item, number, row)
        for number, part in enumerate(parts)
        for item, row in zip(part.items, part.rows, strict=True)
    )
    columns = [{tensor.name: tensor for tensor in part.tensors} for part in parts]
    return [_merge([column[tensor.name] for column in columns], order) for tensor in parts[0].tensors]


def _take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    if isinstance(tensor, Held):
        return tensor.take(rows)
    cut = _Rows(tensor)
    return Tensor(tensor.name, tensor.datatype, (len(rows), *tensor.shape[1:]), b"".join([cut[row] for row in rows]))


def _merge(tensors: Sequence[Tensor], order: Sequence[tuple[int, int, int]]) -> Tensor:
    first = tensors[0]
    for tensor in tensors[1:]:
        if (tensor.datatype, tensor.shape[1:]) != (first.datatype, first.shape[1:]):
            raise ShapesDiffer(
                f'output "{first.name}" is {_shown(first)} for one item and {_shown(tensor)} for another of this '
                "request; send them one at a time"
            )
    held = [tensor for tensor in tensors if isinstance(tensor, Held)]
    if held:
        if len(held) < len(tensors):
            raise ValueError(f'"{first.name}": rows in a worker and rows that are here cannot be one tensor')
        return _merge_held(held, order)
    cuts = [_Rows(tensor) for tensor in tensors]
    data = b"".join([cuts[number][row] for _, number, row in order])
    return Tensor(first.name, first.datatype, (len(order), *first.shape[1:]), data)


def _merge_held(tensors: Sequence[Held], order: Sequence[tuple[int, int, int]]) -> Held:
    starts = list(accumulate((len(tensor.rows) for tensor in tensors), initial=0))
    return Held.join(tensors).take([starts[number] + row for _, number, row in order])


class _Rows:
    """The bytes of each row."""

    __slots__ = ("_bounds", "_view")

    def __init__(self, tensor: Tensor) -> None:
        self._view = memoryview(tensor.data)
        self._bounds = _bounds(tensor, len(self._view))

    def __getitem__(self, row: int) -> memoryview:
        return self._view[self._bounds[row] : self._bounds[row + 1]]


def _bounds(tensor: Tensor, length: int) -> Sequence[int]:
    """Where rows begin, and where the last one ends."""
    count = tensor.shape[0]
    if tensor.datatype != BYTES:
        size = length // count if count else 0
        return range(0, length + 1, size) if size else [0] * (count + 1)
    elements = math.prod(tensor.shape[1:])
    return list(accumulate(range(count), lambda start, _: skip_bytes(tensor.data, start, elements), initial=0))


def _shown(tensor: Tensor) -> str:
    return f"{tensor.datatype}[{','.join(map(str, tensor.shape[1:]))}]"
