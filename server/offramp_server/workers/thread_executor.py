"""The in-process twin of a worker process: the same models in a thread, for tests and for embedding.

It saves the hop (70 us of CPU a call in benchmarks/results) and costs the isolation: a model that crashes takes the
server with it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from offramp_adapters.routes.held import Held
from open_inference.tensor import Tensor

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.batch import Batch, BatchSink
from offramp_server.scheduling.held import HeldMemory
from offramp_server.scheduling.work import Timing
from offramp_server.workers.host import LoadReport, ModelHost, Placement
from offramp_server.workers.kept import HeldInput, places_of

SLOTS = 3

log = logging.getLogger("offramp.worker")

_Job = tuple[Batch, list[Tensor]]


class ThreadExecutor:
    """One computing thread. Models load in another, so that loading holds up nothing."""

    slots = SLOTS
    process_id = None

    def __init__(self, name: str, sink: BatchSink, max_held_bytes: int) -> None:
        self.name = name
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._host = ModelHost()
        self.held = HeldMemory(self._loop, max_held_bytes, self._host.kept.release)
        self._handles: set[int] = set()
        # Those whose devices are other than the processor: it waits for them.
        self._elsewhere: set[int] = set()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._compute, name=name, daemon=True)
        self.in_flight = 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def holds(self, handle: int) -> bool:
        return handle in self._handles

    async def start(self) -> None:
        self._thread.start()

    async def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        try:
            report = await asyncio.to_thread(self._host.load, handle, spec, placement)
        except LoadError:
            raise
        except Exception as error:
            # As a worker process has it: whatever a library raises, the model cannot be loaded.
            log.exception("load failed")
            raise LoadError(f"{type(error).__name__}: {error}") from error
        self._handles.add(handle)
        if placement.device != "cpu":
            self._elsewhere.add(handle)
        return report

    async def unload(self, handle: int) -> None:
        self._handles.discard(handle)
        self._elsewhere.discard(handle)
        await asyncio.to_thread(self._host.unload, handle)

    async def close(self) -> None:
        if self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def submit(self, batch: Batch) -> None:
        inputs = [_join(whole, parts) for whole, parts in batch.joined_inputs()]
        idle = self.in_flight == 0
        self.in_flight += 1
        if batch.trivial and idle:
            # Waking the thread and being woken by it costs several times what this batch does.
            self._compute_one(batch, inputs)()
        else:
            self._jobs.put((batch, inputs))

    def _compute(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._loop.call_soon_threadsafe(self._compute_one(*job))
            except RuntimeError:
                # The loop was closed under us: nobody is left to answer.
                return
            # The next one may be long in coming, and what this one refers to would be kept until then.
            del job

    def _compute_one(self, batch: Batch, inputs: Sequence[Tensor]) -> Callable[[], None]:
        """Compute, and return what the loop is to do about it."""
        staying = batch.keep.only_kept if batch.keep else 0
        started = time.thread_time_ns()
        try:
            if batch.held:
                inputs = self._host.kept.resolved(inputs)
            outputs, infer_ns, splits = self._host.execute(batch.handle, inputs, staying)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return lambda: self._report_failure(batch, message)
        if batch.keep:
            self._host.kept.keep(batch.keep, outputs)
            outputs = [_without_data(each) if staying >> at & 1 else each for at, each in enumerate(outputs)]
        finished_ns = time.monotonic_ns()
        # For most of what a small model takes in a thread, it waits until the event loop lets go of the interpreter.
        # With that counted, it would never be found to be so small that the loop had better compute it.
        alone_ns = None if batch.handle in self._elsewhere else min(infer_ns, time.thread_time_ns() - started)
        timing = Timing(max(0, finished_ns - batch.sent_ns - infer_ns), infer_ns, 0, splits, alone_ns)
        return lambda: self._report(batch, outputs, timing, finished_ns)

    def _report(self, batch: Batch, outputs: list[Tensor], timing: Timing, finished_ns: int) -> None:
        self.in_flight -= 1
        timing.output_ns = time.monotonic_ns() - finished_ns
        self._sink.completed(self, batch, outputs, timing)

    def _report_failure(self, batch: Batch, message: str) -> None:
        self.in_flight -= 1
        self._sink.failed(self, batch, message)


def _without_data(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, tensor.shape, b"")


def _join(whole: Tensor, parts: Sequence[Tensor]) -> Tensor:
    if isinstance(whole, Held):
        return HeldInput("", whole.datatype, whole.shape, b"", places_of(whole))
    if len(parts) == 1:
        return parts[0]
    return Tensor(whole.name, whole.datatype, whole.shape, b"".join(part.data for part in parts))
