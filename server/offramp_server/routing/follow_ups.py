"""What goes on once an answer is out: audits and shadows. At low priority, bounded, and every drop is counted.

Whether one is dropped never depends on what is in the request, or those that are left would not be a sample of what
came. What a drop does to the evidence is for whoever judges it: the observation says that it was to be, and was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from offramp_adapters.audits.observation import Observation
from offramp_adapters.routes.plan import FollowUp
from offramp_adapters.routes.strategy import Level

from offramp_server.errors import OfframpError
from offramp_server.telemetry.stats import Stats

log = logging.getLogger("offramp.routing")

SHADOW = "shadow"
# Why one was dropped: the server's load; too many of them under way, or too large; it took too long; it raised; its
# route is gone, or the server is.
OVERLOAD, FULL, MEMORY, LATE, FAILED, REMOVED, SHUTDOWN = (
    "overload", "full", "memory", "late", "failed", "removed", "shutdown",
)  # fmt: skip
DONE = "done"


@dataclass(frozen=True, slots=True)
class FollowUpLimits:
    """Of all that is under way at one time."""

    count: int = 256
    # Of the requests' inputs that are kept for them.
    bytes: int = 256 * 2**20
    # Longest time from the answer to the end of the follow-up, in seconds.
    age: float = 30.0


@dataclass(slots=True, eq=False)
class Errand:
    """A follow-up of one answer."""

    route: str
    follow_up: FollowUp
    # Carries its plan out.
    perform: Callable[[], Awaitable[Sequence[Observation]]]
    # Called exactly once, with what was seen or with what was lost.
    ended: Callable[[Sequence[Observation]], None]
    # Bytes of inputs that it keeps.
    size: int = 0
    # As it was when the request came.
    level: Level = Level.NORMAL
    # Why it is being cancelled.
    dropped: str = ""


class _Late(Exception):
    """It has taken longer than it may."""


class FollowUps:
    """Starts errands while there is room for them. Runs on one event loop."""

    def __init__(self, limits: FollowUpLimits, stats: Stats) -> None:
        self._limits = limits
        self._stats = stats
        self._tasks: dict[Errand, asyncio.Task[Sequence[Observation]]] = {}
        self._bytes = 0
        self._closed = False

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    @property
    def held_bytes(self) -> int:
        return self._bytes

    def add(self, errand: Errand) -> None:
        """It is started soon, or dropped now."""
        self._stats.follow_ups_offered[errand.route, errand.follow_up.kind] += 1
        reason = self._refusal(errand)
        if reason:
            self._lose(errand, reason)
            return
        self._bytes += errand.size
        until = asyncio.get_running_loop().time() + self._limits.age
        task = asyncio.create_task(self._carry_out(errand, until))
        self._tasks[errand] = task
        # Not in the task: one that is cancelled before its first step never comes to anything of its own.
        task.add_done_callback(lambda done: self._ended(errand, done))

    def drop(self, route: str) -> None:
        """Give up what is under way for a route that is gone."""
        self._cancel([errand for errand in self._tasks if errand.route == route], REMOVED)

    async def drain(self, timeout: float) -> bool:
        """Finish what is under way, at most for so many seconds. Whether that was enough; the rest goes on."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout)
        return not self._tasks

    async def close(self) -> None:
        """Give up what is under way, and take no more."""
        self._closed = True
        tasks = list(self._tasks.values())
        self._cancel(list(self._tasks), SHUTDOWN)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _refusal(self, errand: Errand) -> str:
        """Why it cannot be; empty: it can."""
        if errand.follow_up.dropped:
            return errand.follow_up.dropped
        if self._closed:
            return SHUTDOWN
        if errand.follow_up.kind == SHADOW and errand.level is Level.OVERLOADED:
            return OVERLOAD
        if len(self._tasks) >= self._limits.count:
            return FULL
        # Whatever its own size is: dropping large ones first would be looking at them.
        return MEMORY if self._bytes >= self._limits.bytes else ""

    async def _carry_out(self, errand: Errand, until: float) -> Sequence[Observation]:
        try:
            async with asyncio.timeout_at(until) as limit:
                return await errand.perform()
        except TimeoutError:
            if limit.expired():
                raise _Late from None
            raise

    def _ended(self, errand: Errand, task: asyncio.Task[Sequence[Observation]]) -> None:
        del self._tasks[errand]
        self._bytes -= errand.size
        if task.cancelled():
            self._lose(errand, errand.dropped or FAILED)
        elif isinstance(error := task.exception(), _Late):
            self._lose(errand, LATE)
        elif error is not None:
            self._say(errand, error)
            self._lose(errand, FAILED)
        else:
            self._stats.follow_ups[errand.route, errand.follow_up.kind, DONE] += 1
            errand.ended(task.result())

    def _say(self, errand: Errand, error: BaseException) -> None:
        """What has to be expected is only counted; anything else is a mistake, and nobody else sees it."""
        expected = isinstance(error, OfframpError)
        log.log(
            logging.DEBUG if expected else logging.ERROR, "a %s of route %s failed: %s",
            errand.follow_up.kind, errand.route, error, exc_info=None if expected else error,
        )  # fmt: skip

    def _cancel(self, errands: Sequence[Errand], reason: str) -> None:
        for errand in errands:
            errand.dropped = errand.dropped or reason
            self._tasks[errand].cancel()

    def _lose(self, errand: Errand, reason: str) -> None:
        errand.follow_up.plan.close()
        self._stats.follow_ups[errand.route, errand.follow_up.kind, reason] += 1
        errand.ended(errand.follow_up.lost(reason))
