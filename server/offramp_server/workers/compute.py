"""The worker's loop over its slabs: batches are taken in turn and answered in the same order.

A batch for an engine that stages its work is begun while the one before is still computed; every other one is executed
from beginning to end, once nothing is under way.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from offramp_server.scheduling.held import Keep
from offramp_server.workers import frame
from offramp_server.workers.host import Begun, Computed, ModelHost
from offramp_server.workers.slab import Slab

log = logging.getLogger("offramp.worker")


@dataclass(frozen=True, slots=True)
class _Task:
    """What is left to do about a batch once it is computed."""

    slab: Slab
    keep: Keep | None
    input_ns: int

    @property
    def staying(self) -> int:
        return self.keep.only_kept if self.keep else 0


class ComputeLoop:
    """`requests` and `responses` are eventfds that count batches to compute, as a semaphore, and computed ones."""

    def __init__(self, host: ModelHost, requests: int, responses: int, slabs: Sequence[Slab]) -> None:
        self._host = host
        self._requests = requests
        self._responses = responses
        self._slabs = slabs
        self._turn = 0
        self._under_way: tuple[_Task, Begun] | None = None
        self._more = select.poll()
        self._more.register(requests, select.POLLIN)

    def run(self) -> None:
        while True:
            self.step()

    def step(self) -> None:
        """Take the next batch, waiting for one; or finish what is under way if none has come meanwhile."""
        if self._under_way is not None and not self._more.poll(0):
            self._finish()
            return
        os.eventfd_read(self._requests)
        slab = self._slabs[self._turn]
        self._turn = (self._turn + 1) % len(self._slabs)
        self._take(slab)

    def _take(self, slab: Slab) -> None:
        host = self._host
        started = time.monotonic_ns()
        begun = None
        try:
            request = frame.read_request(slab)
            host.kept.release(request.released)
            inputs = host.kept.resolved(request.inputs)
            task = _Task(slab, request.keep, time.monotonic_ns() - started)
            if request.handle in host.staged:
                begun = host.begin(request.handle, inputs, task.staying)
            # In their order, and before anything is executed: the device has room for one then.
            self._finish()
            if begun is None:
                self._answer(task, host.execute(request.handle, inputs, task.staying))
        except Exception as error:
            self._finish()
            _answer_error(slab, error)
        if begun is None:
            os.eventfd_write(self._responses, 1)
        else:
            self._under_way = (task, begun)

    def _finish(self) -> None:
        """Answer what is under way, if anything is."""
        if self._under_way is None:
            return
        (task, begun), self._under_way = self._under_way, None
        try:
            self._answer(task, self._host.finish(begun))
        except Exception as error:
            _answer_error(task.slab, error)
        os.eventfd_write(self._responses, 1)

    def _answer(self, task: _Task, computed: Computed) -> None:
        frame.write_outputs(
            task.slab,
            computed.outputs,
            task.input_ns,
            computed.infer_ns,
            time.monotonic_ns,
            task.staying,
            computed.splits,
        )
        if task.keep:
            # Once nothing can go wrong any more: nobody would let go of it.
            self._host.kept.keep(task.keep, computed.outputs)


def _answer_error(slab: Slab, error: Exception) -> None:
    # The message goes to the caller and not into the log: libraries like to quote the values they choke on.
    log.warning("a batch failed with %s", type(error).__name__)
    frame.write_error(slab, f"{type(error).__name__}: {error}")
