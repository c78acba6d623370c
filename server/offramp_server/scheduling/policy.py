"""Which model's queue an executor that has room serves next: strategy without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from offramp_server.scheduling.batch import Executor
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.work import Work

# Lower is sooner: nobody waits for it, priority, stages that it should rather wait behind, arrival, tie-break.
_Rank: TypeAlias = tuple[bool, int, int, int, int]


class ShallowFirst:
    """Serve the queue whose head comes first by priority, then by age, but let deep stages gather.

    A request that has stages behind it is mostly the oldest there is, so that by age alone the deep stage would be
    served whenever one item waits there, in batches of one. It goes behind the shallow ones until its batch is full,
    or its head has waited there for as long as gathering pays. That is a matter of order only: an executor that would
    otherwise be idle takes it at once, so there is no timer, and a batch leaves when it can.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        """`clock`: monotonic nanoseconds."""
        self._clock = clock

    def choose(self, lanes: Iterable[Lane], executor: Executor, may_continue: bool) -> tuple[Lane, Work] | None:
        """The lane and the head of the batch that is to be sent. `may_continue`: some of what this executor was sent
        last may come back for a deeper stage."""
        chosen: tuple[Lane, Work] | None = None
        chosen_rank: _Rank = (False, 0, 0, 0, 0)
        for lane in lanes:
            if not executor.holds(lane.handle):
                continue
            head = lane.queue.head(executor.name)
            if head is None:
                continue
            rank = self._rank(lane, head)
            if chosen is None or rank < chosen_rank:
                chosen, chosen_rank = (lane, head), rank
        # Asked of that one alone: if another could go instead because it has a full batch, it would go every time,
        # and a model with few requests would wait for as long as the other's load lasts.
        return chosen if chosen is not None and self._may_send(*chosen, executor, may_continue) else None

    def _rank(self, lane: Lane, head: Work) -> _Rank:
        behind = head.depth if head.depth and self._gathers(lane, head) else 0
        return (head.background, head.priority, behind, head.arrived_ns, head.sequence)

    def _gathers(self, lane: Lane, head: Work) -> bool:
        """Whether this deep stage had better wait for more."""
        gather_ns = lane.cost.gather_seconds * 1e9
        return self._clock() - head.enqueued_ns < gather_ns and not lane.queue.has_full_batch(head)

    @staticmethod
    def _may_send(lane: Lane, head: Work, executor: Executor, may_continue: bool) -> bool:
        """An idle executor takes anything. A busy one is sent one batch ahead, if that batch cannot grow any more,
        or if it is so cheap that growing would not pay. Not if some may come back from the batch before it who would be
        served first; and nothing for which nobody waits, for others may come."""
        if executor.in_flight == 0:
            return True
        if head.background:
            return False
        if lane.cost.trivial:
            return executor.in_flight < executor.slots
        return executor.in_flight == 1 and not may_continue and lane.queue.has_full_batch(head)
