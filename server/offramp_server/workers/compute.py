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
from typing import NamedTuple

from offramp_server.scheduling.held import Keep
from offramp_server.workers import frame
from offramp_server.workers.host import Begun, ModelHost
from offramp_server.workers.slab import Slab

log = logging.getLogger("offramp.worker")


class _Task(NamedTuple):
    """What is left to do about a batch once it is computed."""

    slab: Slab
    keep: Keep | None
    staying: int
    input_ns: int
    begun: Begun


class ComputeLoop:
    """`requests` and `responses` are eventfds that count batches to compute, as a semaphore, and computed ones."""

    def __init__(self, host: ModelHost, requests: int, responses: int, slabs: Sequence[Slab]) -> None:
        self._host = host
        self._requests = requests
        self._responses = responses
        self._slabs = slabs
        self._turn = 0
        self._under_way: _Task | None = None
        self._more = select.poll()
        self._more.register(requests, select.POLLIN)

    def run(self) -> None:
        while True:
            self.step()

    def step(self) -> None:
        """Take the next batch, waiting for one; or finish what is under way if none has come meanwhile."""
        if self._under_way is not None and not self._more.poll(0):
            self._finish(self._under_way)
            return
        os.eventfd_read(self._requests)
        slab = self._slabs[self._turn]
        self._turn = (self._turn + 1) % len(self._slabs)
        self._take(slab)

    def _take(self, slab: Slab) -> None:
        host = self._host
        started = time.monotonic_ns()
        try:
            begun = None
            request = frame.read_request(slab)
            host.kept.release(request.released)
            keep, inputs = request.keep, host.kept.resolved(request.inputs)
            prepared = time.monotonic_ns()
            staying = keep.only_kept if keep else 0
            if request.handle in host.staged:
                begun = host.begin(request.handle, inputs, staying)
            if self._under_way is not None:
                # In their order, and before anything is executed: the device has room for one then.
                self._finish(self._under_way)
            if begun is None:
                outputs, infer_ns, splits = host.execute(request.handle, inputs, staying)
                frame.write_outputs(slab, outputs, prepared - started, infer_ns, time.monotonic_ns, staying, splits)
                if keep:
                    # Once nothing can go wrong any more: nobody would let go of it.
                    host.kept.keep(keep, outputs)
            else:
                self._under_way = _Task(slab, keep, staying, prepared - started, begun)
                return
        except Exception as error:
            if self._under_way is not None:
                self._finish(self._under_way)
            _answer_error(slab, error)
        os.eventfd_write(self._responses, 1)

    def _finish(self, task: _Task) -> None:
        self._under_way = None
        try:
            outputs, infer_ns, splits = self._host.finish(task.begun)
            frame.write_outputs(task.slab, outputs, task.input_ns, infer_ns, time.monotonic_ns, task.staying, splits)
            if task.keep:
                self._host.kept.keep(task.keep, outputs)
        except Exception as error:
            _answer_error(task.slab, error)
        os.eventfd_write(self._responses, 1)


def _answer_error(slab: Slab, error: Exception) -> None:
    # The message goes to the caller and not into the log: libraries like to quote the values they choke on.
    log.warning("a batch failed with %s", type(error).__name__)
    frame.write_error(slab, f"{type(error).__name__}: {error}")
