"""Which model's queue an executor that has room serves next: strategy without I/O."""

from __future__ import annotations

from collections.abc import Iterable

from offramp_server.scheduling.batch import Executor
from offramp_server.scheduling.lane import Lane

# A batch cheaper than this costs less than the round trip to its worker, so waiting for it gains nothing
# (measured: sending small batches ahead helps below about 0.2 ms and costs a third of the batch size above).
TRIVIAL_BATCH_SECONDS = 0.0002


class OldestHeadFirst:
    """Serve the queue whose head comes first by priority, then by age. No timer: a batch leaves when it can."""

    def choose(self, lanes: Iterable[Lane], executor: Executor) -> Lane | None:
        chosen: Lane | None = None
        chosen_order = (0, 0)
        for lane in lanes:
            if not executor.holds(lane.handle) or not self._may_send(lane, executor):
                continue
            head = lane.queue.head()
            if head is not None and (chosen is None or head.order < chosen_order):
                chosen, chosen_order = lane, head.order
        return chosen

    def _may_send(self, lane: Lane, executor: Executor) -> bool:
        """An idle executor takes anything. A busy one is sent one batch ahead, if that batch cannot grow any more,
        or if it is so cheap that growing would not pay."""
        if executor.in_flight == 0:
            return True
        if lane.seconds_per_batch < TRIVIAL_BATCH_SECONDS:
            return executor.in_flight < executor.slots
        return executor.in_flight == 1 and lane.queue.has_full_batch()
