"""How loaded the server is: looks at its queues again and again, for as long as there is anything in them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from offramp_adapters.control.load import LoadController
from offramp_adapters.routes.strategy import Level

from offramp_server.config import LoadSettings
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.scheduling.work import Work
from offramp_server.telemetry.stats import Stats

# Between two looks. Each costs some microseconds for each queue.
LOOK_SECONDS = 0.01
# Share of the time between a request's arrival and its deadline that it may wait; the rest is for computing.
DEADLINE_SHARE = 0.5
# Of a deadline that is all but over.
_LEAST_SECONDS = 0.001

log = logging.getLogger("offramp.routing")


class LoadMonitor:
    """Tells requests at which level of load they have come. Runs on one event loop."""

    def __init__(
        self,
        settings: LoadSettings,
        schedulers: Callable[[], Iterable[Scheduler]],
        in_flight: Callable[[], int],
        stats: Stats,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`in_flight`: requests inside the server. `clock`: monotonic nanoseconds, as requests' arrivals."""
        # Called after every change of the level.
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._schedulers = schedulers
        self._in_flight = in_flight
        self._stats = stats
        self._loop = loop or asyncio.get_running_loop()
        self._clock = clock
        self.controller = LoadController()
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        # By scheduler: what it had computed at the last look.
        self._computed: dict[Scheduler, int] = {}

    @property
    def level(self) -> Level:
        return self.controller.level

    def arrival(self) -> Level:
        """The level for a request that has just come."""
        if self._timer is None and self._settings.enabled:
            self._begin()
        return self.controller.level

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        """Nothing was there until now."""
        self._looked = self._loop.time()
        self.controller.observe(self._looked, 0.0, 0.0)
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        before = self.level
        level = self.controller.observe(now, self._waiting(now), self._busy(now))
        self._looked = now
        if level is not before:
            self._stats.load_level_changes[before, level] += 1
            log.info("load: %s, was %s", level.name.lower(), before.name.lower())
            self.on_change()
        # There is nothing below idle, and nothing to be seen while nothing comes.
        resting = level is Level.IDLE and not self._in_flight()
        self._timer = None if resting else self._loop.call_later(LOOK_SECONDS, self._look)

    def _waiting(self, now: float) -> float:
        """The longest wait, as a multiple of what it may be: until now, of those who are first in a queue, and to come,
        of whoever would be the last, by what is to be computed before."""
        longest = 0.0
        for scheduler in self._schedulers():
            backlog = scheduler.backlog_seconds()
            for work in scheduler.first_in_queues():
                age = (self._clock() - work.arrived_ns) / 1e9
                longest = max(longest, max(age, backlog) / self._allowed(work, age, now))
        return longest

    def _allowed(self, work: Work, age: float, now: float) -> float:
        """Seconds that a request like this one may wait."""
        allowed = self._settings.target_wait
        if work.deadline is not None:
            allowed = min(allowed, DEADLINE_SHARE * (age + work.deadline - now))
        return max(_LEAST_SECONDS, allowed)

    def _busy(self, now: float) -> float:
        """Share of the time since the last look, of the workers that had most to do for those who wait. A batch counts
        when it is ready, so one that took longer than that makes it more than the whole."""
        highest = 0.0
        elapsed = now - self._looked
        for scheduler in self._schedulers():
            computed = scheduler.foreground_ns - self._computed.get(scheduler, 0)
            self._computed[scheduler] = scheduler.foreground_ns
            if elapsed > 0 and scheduler.workers:
                highest = max(highest, computed / 1e9 / elapsed / scheduler.workers)
        return highest
