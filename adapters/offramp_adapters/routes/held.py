"""Tensors that have stayed where they were computed: what goes from one stage of a network to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from open_inference.tensor import Tensor


@dataclass(slots=True)
class Held(Tensor):
    """Rows that their worker has kept: a name, a datatype, a shape, and no bytes (`data` is empty).

    An input made of them is put together in the worker. They are there for as long as something refers to them, or to
    rows taken of them; nobody has to let go of them, but whoever keeps a reference keeps the worker's memory.
    """

    # The worker that has them. Only it can compute with them; if it ends, so do they.
    home: str = ""
    # For each row what the server finds it by.
    rows: tuple[object, ...] = ()

    def take(self, rows: Sequence[int]) -> Held:
        """These rows, in this order."""
        found = tuple(self.rows[row] for row in rows)
        return Held(self.name, self.datatype, (len(found), *self.shape[1:]), b"", self.home, found)

    @staticmethod
    def join(parts: Sequence[Held]) -> Held:
        """The rows of all parts, one after the other, under the name of the first. Raises ValueError if they are not in
        one worker, or not of one shape and datatype."""
        first = parts[0]
        for part in parts[1:]:
            if (part.home, part.datatype, part.shape[1:]) != (first.home, first.datatype, first.shape[1:]):
                raise ValueError(f'"{first.name}": rows of different workers, shapes or datatypes cannot be one tensor')
        rows = tuple(row for part in parts for row in part.rows)
        return Held(first.name, first.datatype, (len(rows), *first.shape[1:]), b"", first.home, rows)
