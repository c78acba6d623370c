"""Which model's queue an executor that has room serves next: strategy without I/O."""

from __future__ import annotations

from collections.abc import Iterable

from offramp_server.scheduling.batch import Executor
from offramp_server.scheduling.lane import Lane


class OldestHeadFirst:
    """Serve the queue whose head comes first by priority, then by age. No timer: a batch leaves when it can."""

    def choose(self, lanes: Iterable[Lane], executor: Executor) -> Lane | None:
        chosen: Lane | None = None
        chosen_order = (False, 0, 0, 0)
        for lane in lanes:
            if not executor.holds(lane.handle):
                continue
            head = lane.queue.head()
            if head is not None and (chosen is None or head.order < chosen_order):
                chosen, chosen_order = lane, head.order
        # Asked of that lane alone: if another could go instead because it has a full batch, it would go every time,
        # and a model with few requests would wait for as long as the other's load lasts.
        return chosen if chosen is not None and self._may_send(chosen, executor) else None

    def _may_send(self, lane: Lane, executor: Executor) -> bool:
        """An idle executor takes anything. A busy one is sent one batch ahead, if that batch cannot grow any more,
        or if it is so cheap that growing would not pay."""
        if executor.in_flight == 0:
            return True
        if lane.trivial:
            return executor.in_flight < executor.slots
        return executor.in_flight == 1 and lane.queue.has_full_batch()
