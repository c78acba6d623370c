"""A double of a GPU on the CPU that keeps CUDA's rules, so that code that breaks them gives wrong answers or raises.

Copies between the host and the device take effect as late as CUDA allows: until then their target holds garbage. What
is captured is a list of operators with the very tensors that they were given, and a replay runs that list, whatever has
become of the variables that once held those tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from offramp_server.workers.engines.accelerator import Captured
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOT_PERMITTED = "operation not permitted when stream is capturing"
# Operators that read a value back from the device, or whose shape depends on one.
SYNCHRONISING = frozenset(
    {
        torch.ops.aten.item.default,
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
    }
)


@dataclass(eq=False)
class Stream:
    """Copies that were sent and have not been seen to be done, oldest first."""

    name: str
    copies: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def finish(self, count: int) -> None:
        with torch.inference_mode():
            for target, source in self.copies[:count]:
                target.copy_(source)
        del self.copies[:count]


@dataclass(frozen=True)
class Event:
    stream: Stream
    count: int


class StrictAccelerator:
    """Notes the order of what is asked of it in `calls`."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.compute, self.copies = Stream("compute"), Stream("copies")
        self.calls: list[str] = []
        self._current = self._default = Stream("default")
        self._pinned: list[torch.Tensor] = []
        self._capturing = False

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        assert not self._capturing, NOT_PERMITTED
        tensor = torch.empty(tuple(shape), dtype=dtype)
        self._pinned.append(tensor)
        return tensor

    def send(self, source: torch.Tensor) -> torch.Tensor:
        assert self._current is self.copies
        assert self._is_pinned(source), "a copy from memory that is not pinned waits for the device"
        self.calls.append("send")
        return self._later(torch.empty_like(source), source)

    def fetch(self, source: torch.Tensor, into: torch.Tensor) -> None:
        assert self._current is self.compute
        assert self._is_pinned(into), "a copy to memory that is not pinned waits for the device"
        self.calls.append("fetch")
        # In the order of the stream: what the device holds now.
        self._later(into, source.clone())

    def mark(self, stream: Stream) -> Event:
        return Event(stream, len(stream.copies))

    def mark_current(self) -> Event:
        return self.mark(self._current)

    def follow(self, stream: Stream, event: Event) -> None:
        event.stream.finish(event.count)

    def wait_for(self, event: Event) -> None:
        assert not self._capturing, NOT_PERMITTED
        self.calls.append("wait")
        event.stream.finish(event.count)

    def settle(self) -> None:
        assert not self._capturing, NOT_PERMITTED
        for stream in (self.copies, self.compute):
            stream.finish(len(stream.copies))

    def capture(self, work: Callable[[], list[torch.Tensor]]) -> Captured:
        assert self._current is self.compute
        self.calls.append("capture")
        recording = _Recording()
        self._capturing = True
        try:
            with recording:
                outputs = work()
        finally:
            self._capturing = False
        return Captured(lambda: self._replay(recording), outputs, recording.steps.clear)

    def _replay(self, recording: _Recording) -> None:
        assert self._current is self.compute
        self.calls.append("replay")
        recording.replay()

    def _later(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        target.fill_(torch.nan if target.is_floating_point() else 99)
        self._current.copies.append((target, source))
        return target

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return any(tensor.data_ptr() == each.data_ptr() for each in self._pinned)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators with their arguments and results, as they were when they were recorded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SYNCHRONISING:
            raise RuntimeError(f"CUDA error: {NOT_PERMITTED}")
        result = func(*args, **(kwargs or {}))
        storages = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        written = [each for each in _tensors(result) if each.untyped_storage().data_ptr() not in storages]
        # A view does nothing on the device.
        if written or func._schema.is_mutable:
            self.steps.append((func, args, kwargs or {}, written))
        return result

    def replay(self) -> None:
        assert self.steps, "the graph was reset"
        with torch.inference_mode():
            for func, args, kwargs, written in self.steps:
                results = _tensors(func(*args, **kwargs))
                if not func._schema.is_mutable:
                    for target, result in zip(written, results, strict=True):
                        target.copy_(result)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
