"""Outputs that stay on the device where they were computed, for the next stage of their network.

Written against torch's interface and run with tensors of the CPU; there was no GPU where it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_inference.tensor import Tensor

from offramp_server.workers.engines import torch_tensors


@dataclass(slots=True)
class DeviceTensor(Tensor):
    """A tensor whose elements are in `value`; `data` is empty."""

    value: torch.Tensor

    def gather(self, parts: Sequence[tuple[Tensor, Sequence[int]]]) -> DeviceTensor:
        """Rows of several tensors as one on this one's device, one after the other in memory."""
        with torch.inference_mode():
            sources = [(_on(self.value.device, tensor), rows) for tensor, rows in parts]
            taken = [_taken(value, rows) for value, rows in sources]
            # torch keeps the strides of what it indexes and puts together.
            whole = (taken[0] if len(taken) == 1 else torch.cat(taken)).contiguous()
            for value, _ in sources:
                _read_here(value)
        return DeviceTensor(self.name, self.datatype, tuple(whole.shape), b"", whole)


def as_torch(tensor: Tensor, copy: bool) -> torch.Tensor:
    """Like `torch_tensors.from_wire`, for tensors on a device too."""
    if not isinstance(tensor, DeviceTensor):
        return torch_tensors.from_wire(tensor, copy)
    return tensor.value.clone() if copy else tensor.value


def _on(device: torch.device, tensor: Tensor) -> torch.Tensor:
    """What some request of an earlier batch wanted to have itself has come to the host."""
    return as_torch(tensor, copy=False).to(device)


def _taken(value: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """A view where they follow one another: batches are cut when there is no memory for a copy."""
    first = rows[0] if rows else 0
    following = range(first, first + len(rows))
    return value[first : following.stop] if list(rows) == list(following) else value[list(rows)]


def _read_here(value: torch.Tensor) -> None:
    """What another stream has allocated is not given to its next batch before this one has read it."""
    if value.is_cuda:
        value.record_stream(torch.cuda.current_stream(value.device))
