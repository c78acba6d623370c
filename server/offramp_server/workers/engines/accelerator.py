"""What the engines need of a GPU, apart from tensors: streams, events, pinned memory, graphs.

They are behind a protocol because there was no GPU where this was written: tests drive the engines with a double on the
CPU that keeps CUDA's rules (`tests/unit/strict_accelerator.py`). `CudaAccelerator` is written against torch 2.11 and
2.13 and has not been run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Captured:
    """Work that was recorded once, with the memory that it uses each time it is replayed."""

    replay: Callable[[], object]
    # Written by each replay.
    outputs: list[torch.Tensor]
    # Gives back the recording.
    reset: Callable[[], object]


class Accelerator(Protocol):
    """One engine's share of a device: a stream that computes, and one that brings its inputs meanwhile.

    Streams and events are opaque. Nothing here waits for the device but `wait_for` and `settle`.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def compute(self) -> Any: ...

    @property
    def copies(self) -> Any: ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """What this thread sends to the device goes to `stream`."""
        ...

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host that the device can reach by itself. Not while something is captured."""
        ...

    def send(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of pinned memory on the device, made in the order of the current stream."""
        ...

    def fetch(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy from the device to pinned memory, in the order of the current stream."""
        ...

    def mark(self, stream: Any) -> Any:
        """An event: everything that was sent to `stream` so far is done."""
        ...

    def mark_current(self) -> Any:
        """The same for what this thread has sent to its stream."""
        ...

    def follow(self, stream: Any, event: Any) -> None:
        """What is sent to `stream` from now on begins after `event`."""
        ...

    def wait_for(self, event: Any) -> None: ...

    def settle(self) -> None:
        """Wait until nothing of this engine is under way."""
        ...

    def capture(self, work: Callable[[], list[torch.Tensor]]) -> Captured:
        """Record what `work` sends to the device, on the computing stream. All recordings of one accelerator share
        memory, so that one is replayed at a time, and its outputs are valid until the next is.

        Raises what `work` raises, and RuntimeError for what cannot be recorded.
        """
        ...


def without_tf32() -> None:
    """fp32 means fp32: by default convolutions round to ten bits, and other engines do not. What is compiled has the
    choice built in, so that whoever builds for a GPU makes it too."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class CudaAccelerator:
    """CUDA by way of torch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.compute = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        # From torch's cache of pinned memory: page-locking anew for every batch would cost more than it saves.
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def send(self, source: torch.Tensor) -> torch.Tensor:
        return source.to(self.device, non_blocking=True)

    def fetch(self, source: torch.Tensor, into: torch.Tensor) -> None:
        into.copy_(source, non_blocking=True)

    def mark(self, stream: Any) -> Any:
        return stream.record_event()

    def mark_current(self) -> Any:
        return torch.cuda.current_stream(self.device).record_event()

    def follow(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def wait_for(self, event: Any) -> None:
        event.synchronize()

    def settle(self) -> None:
        self.copies.synchronize()
        self.compute.synchronize()

    def capture(self, work: Callable[[], list[torch.Tensor]]) -> Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread of the worker computes and allocates for other models meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self.compute, capture_error_mode="thread_local"):
            outputs = work()
        return Captured(graph.replay, outputs, graph.reset)
