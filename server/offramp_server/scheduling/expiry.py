"""One timer for all the deadlines of a scheduler: a timer for each request would cost more than its deadline."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable

from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.work import Work

# Answered requests stay in the heap until their time; a heap that has grown to this size, or to twice what was left
# after the last sweep, is swept.
SWEEP_ABOVE = 4096


class ExpiryTimer:
    """Calls `expire(lane, work)` for each watched request that still waits when its deadline passes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[Lane, Work], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._heap: list[tuple[float, int, Lane, Work]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        # Kept here: uvloop's handle does not know its time if that has come already.
        self._armed_for = math.inf
        self._sweep_above = SWEEP_ABOVE

    def watch(self, deadline: float, lane: Lane, work: Work) -> None:
        if len(self._heap) > self._sweep_above:
            self._sweep()
        heapq.heappush(self._heap, (deadline, next(self._order), lane, work))
        if deadline < self._armed_for:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._armed_for = self._heap[0][0] if self._heap else math.inf
        if self._heap:
            self._timer = self._loop.call_at(self._armed_for, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            _, _, lane, work = heapq.heappop(self._heap)
            self._expire(lane, work)
        self._arm()

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[3].waits]
        heapq.heapify(self._heap)
        self._sweep_above = max(SWEEP_ABOVE, 2 * len(self._heap))
