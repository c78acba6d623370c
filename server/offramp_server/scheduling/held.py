"""Outputs that stay with the executor that has computed them, for the next stage: who has what, and for how long.

An output is there for as long as somebody in this process refers to rows of it. That is what Python counts anyway, so
there is no way to end a request, be it by an answer, an error or a cancellation, that could leave something behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from offramp_adapters.routes.held import Held
from open_inference.tensor import Tensor, byte_size

# Lets go of what batches of these numbers have left.
Release: TypeAlias = Callable[[Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class Keep:
    """What an executor is to keep of the outputs of one batch; a bit for each in `outputs` and `copied`."""

    # By which it is asked for later; never reused.
    number: int
    outputs: int
    # Those of `outputs` that some requests of the batch get as well.
    copied: int = 0

    @property
    def only_kept(self) -> int:
        return self.outputs & ~self.copied


class KeptRow(NamedTuple):
    """One row that an executor has."""

    batch: KeptBatch
    # Of the output, and of the row in it.
    output: int
    row: int


class KeptBatch:
    """What one batch has left with its executor, which lets go of it when this object is gone."""

    __slots__ = ("_memory", "number", "size")

    def __init__(self, memory: HeldMemory, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self._memory = memory

    def __del__(self) -> None:
        self._memory.dropped(self.number, self.size)


class HeldMemory:
    """Counts what one executor keeps, and bounds it: a batch is asked to keep something only while there is room.

    The bound may be exceeded by what the batches under way keep, since nobody knows how much before they are done.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int, release: Release) -> None:
        """`release` is called on the loop's thread."""
        self.bytes = 0
        self._max_bytes = max_bytes
        self._loop = loop
        self._release = release
        self._dropped: deque[tuple[int, int]] = deque()
        self._is_due = False

    @property
    def has_room(self) -> bool:
        return self.bytes < self._max_bytes

    def kept(self, keep: Keep, outputs: Sequence[Tensor]) -> KeptBatch:
        """The executor has computed these outputs and kept some of them."""
        sizes = (byte_size(output.datatype, output.shape) or 0 for output in outputs)
        size = sum(size for position, size in enumerate(sizes) if keep.outputs >> position & 1)
        self.bytes += size
        return KeptBatch(self, keep.number, size)

    def dropped(self, number: int, size: int) -> None:
        """Nobody refers to the batch any more. On any thread: Python's collector runs wherever it likes."""
        self._dropped.append((number, size))
        if not self._is_due:
            self._is_due = True
            # After the end of the loop there is nobody left who could be told.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        self._is_due = False
        numbers = []
        while self._dropped:
            number, size = self._dropped.popleft()
            self.bytes -= size
            numbers.append(number)
        if numbers:
            self._release(numbers)


def held_rows(output: Tensor, position: int, batch: KeptBatch, home: str, start: int, count: int) -> Held:
    """`count` rows, from `start`, of an output that `home` has kept."""
    rows = tuple(KeptRow(batch, position, row) for row in range(start, start + count))
    return Held(output.name, output.datatype, (count, *output.shape[1:]), b"", home, rows)
