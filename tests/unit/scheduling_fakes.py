"""A clock that tests move by hand, and an executor whose batches they finish by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from offramp_server.model_spec import BatchingSettings, ModelSpec, TensorSpec
from offramp_server.scheduling.batch import Batch, BatchSink
from offramp_server.scheduling.held import HeldMemory
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.work import Timing, Work
from offramp_server.telemetry.stats import ModelStats
from open_inference.tensor import Tensor


class HandClock(asyncio.SelectorEventLoop):
    """An event loop on which time passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()

    def time(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        await settle()


def on_hand_clock(test: Coroutine[Any, Any, None], loop: HandClock) -> None:
    """Run the test; whatever a callback raises, which a loop would only log, fails it."""
    raised: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    try:
        loop.run_until_complete(test)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    assert not raised


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


class HandExecutor:
    """Doubles its input, when the test says so."""

    slots = 3

    def __init__(self, sink: BatchSink, name: str = "hand") -> None:
        self.name = name
        self.sink = sink
        self.held = HeldMemory(asyncio.get_running_loop(), 1 << 20, lambda numbers: None)
        self.batches: list[Batch] = []
        # The values of each batch ever submitted, as they were then.
        self.seen: list[list[float]] = []

    @property
    def in_flight(self) -> int:
        return len(self.batches)

    def holds(self, handle: int) -> bool:
        return True

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.seen.append(values_of(batch))

    @property
    def computing(self) -> list[float]:
        """What the oldest batch holds."""
        return self.seen[-len(self.batches)]

    def finish(self, infer_ns: int = 1_000_000, rows: int | None = None) -> None:
        values = np.array(self.computing[:rows], dtype=np.float32).reshape(-1, 1) * 2
        batch = self.batches.pop(0)
        self.sink.completed(self, batch, [Tensor.from_numpy("y", values)], Timing(1, infer_ns, 1))

    def raise_error(self, message: str) -> None:
        self.sink.failed(self, self.batches.pop(0), message)

    def die(self, computing: bool = True) -> None:
        batches, self.batches = self.batches, []
        self.sink.lost(self, batches, computing)


def values_of(batch: Batch) -> list[float]:
    return [float(value) for work in batch.works for tensor in work.inputs for value in tensor.numpy().ravel()]


def spec(max_batch_size: int = 4, max_queue_items: int = 100, name: str = "double") -> ModelSpec:
    return ModelSpec(
        name, 1, Path("model.onnx"), "onnx", max_batch_size,
        (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),),
        batching=BatchingSettings(max_queue_items=max_queue_items),
    )  # fmt: skip


def lane(handle: int = 1, seconds: float = 0.01, **fields: Any) -> Lane:
    return Lane(handle, spec(**fields), ModelStats(), {1: seconds} if seconds else {})


def work(values: float | Sequence[float], **fields: Any) -> Work:
    rows = np.atleast_1d(np.asarray(values, dtype=np.float32)).reshape(-1, 1)
    future = fields.pop("future", None) or asyncio.get_running_loop().create_future()
    key = fields.pop("shape_key", (1,))
    return Work([Tensor.from_numpy("x", rows)], len(rows), key, future, **fields)
