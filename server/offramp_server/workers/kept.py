"""What a worker keeps of the outputs of batches, and inputs put together of that."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from offramp_adapters.routes.held import Held
from open_inference.tensor import Tensor

from offramp_server.scheduling.held import Keep, KeptRow
from offramp_server.workers.out_of_memory import with_caches_freed

# Number of the batch, of its output, of the row.
_PLACE = struct.Struct("<QII")


class Place(NamedTuple):
    """Where one row is."""

    batch: int
    output: int
    row: int


@dataclass(slots=True)
class HeldInput(Tensor):
    """An input that the worker has, row by row."""

    places: Sequence[Place] = ()


# Rows of one kept output.
Rows: TypeAlias = tuple[Tensor, Sequence[int]]


class OnDevice(Protocol):
    """A kept output that an engine has left where it computes."""

    def gather(self, parts: Sequence[Rows]) -> Tensor:
        """One tensor there, of rows of several, some of which may be in the memory of the host."""
        ...


def places_of(held: Held) -> list[Place]:
    rows = cast(Sequence[KeptRow], held.rows)
    return [Place(row.batch.number, row.output, row.row) for row in rows]


def pack_places(places: Sequence[Place]) -> bytes:
    return b"".join([_PLACE.pack(*place) for place in places])


def unpack_places(data: memoryview) -> list[Place]:
    return [Place(*fields) for fields in _PLACE.iter_unpack(data)]


class KeptOutputs:
    """By number of the batch and position. One thread computes; another may let go of what no batch needs any more."""

    def __init__(self) -> None:
        self._outputs: dict[int, dict[int, Tensor]] = {}

    def __len__(self) -> int:
        """Batches of which something is kept."""
        return len(self._outputs)

    def keep(self, keep: Keep, outputs: Sequence[Tensor]) -> None:
        kept = {at: output for at, output in enumerate(outputs) if keep.outputs >> at & 1}
        self._outputs[keep.number] = kept

    def release(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._outputs.pop(number, None)

    def resolved(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inputs with those that are held put together."""
        if not any(isinstance(tensor, HeldInput) for tensor in inputs):
            return inputs
        return with_caches_freed(lambda: self._gathered_of(inputs))

    def _gathered_of(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self._gathered(tensor) if isinstance(tensor, HeldInput) else tensor for tensor in inputs]

    def _gathered(self, tensor: HeldInput) -> Tensor:
        parts = [
            (self._outputs[batch][output], [place.row for place in places])
            for (batch, output), places in groupby(tensor.places, key=lambda place: (place.batch, place.output))
        ]
        first, rows = parts[0]
        if len(parts) == 1 and rows == list(range(first.shape[0])):
            # A whole batch goes on as it is.
            return first
        for part, _ in parts:
            if hasattr(part, "gather"):
                return cast(OnDevice, part).gather(parts)
        return _gather(parts)


def _gather(parts: Sequence[Rows]) -> Tensor:
    first = parts[0][0]
    taken = [np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape[0], -1)[rows] for tensor, rows in parts]
    data = np.concatenate(taken)
    return Tensor(first.name, first.datatype, (len(data), *first.shape[1:]), data.reshape(-1).data)
