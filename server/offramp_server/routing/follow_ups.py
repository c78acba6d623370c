"""What goes on once an answer is out: audits and shadows. At low priority, bounded, and every drop is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from offramp_adapters.audits.observation import Observation
from offramp_adapters.routes.plan import FollowUp

from offramp_server.telemetry.stats import Stats

log = logging.getLogger("offramp.routing")

# Carries a follow-up's plan out.
Perform = Callable[[FollowUp], Awaitable[tuple[Observation, ...]]]
# Takes what was seen: route and observations.
Record = Callable[[str, tuple[Observation, ...]], None]


class FollowUps:
    """Starts what answers leave to be done, at most `limit` at a time; further ones are dropped and noted as lost."""

    def __init__(self, limit: int, record: Record, stats: Stats) -> None:
        self._limit = limit
        self._record = record
        self._stats = stats
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, route: str, follow_up: FollowUp, perform: Perform) -> None:
        """`perform` is called soon if there is room."""
        reason = follow_up.dropped or ("full" if len(self._tasks) >= self._limit else "")
        if reason:
            self._lose(route, follow_up, reason)
            return
        task = asyncio.create_task(self._carry_out(route, follow_up, perform))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, route: str, follow_up: FollowUp, perform: Perform) -> None:
        try:
            observations = await perform(follow_up)
        except asyncio.CancelledError:
            self._lose(route, follow_up, "shutdown")
            raise
        except Exception as error:
            log.debug("a %s of route %s failed: %s", follow_up.kind, route, error)
            self._lose(route, follow_up, "failed")
        else:
            self._stats.follow_ups[route, follow_up.kind, "done"] += 1
            self._record(route, observations)

    def _lose(self, route: str, follow_up: FollowUp, reason: str) -> None:
        follow_up.plan.close()
        self._stats.follow_ups[route, follow_up.kind, reason] += 1
        self._record(route, follow_up.lost(reason))
