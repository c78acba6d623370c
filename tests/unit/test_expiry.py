"""Deadlines on the event loop that the server really runs on."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from eventually import PATIENCE
from offramp_server.scheduling.expiry import ExpiryTimer
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.work import Work
from scheduling_fakes import lane, work


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("seconds", [0.0, 0.0002, 0.0008, 0.003])
def test_deadlines_one_after_the_other_all_fire_however_close_they_are(loop_factory: object, seconds: float) -> None:
    expired: list[Work] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def expire(_: Lane, late: Work) -> None:
            expired.append(late)
            if len(expired) == 200:
                done.set()

        timer, queue = ExpiryTimer(loop, expire), lane()
        for _ in range(200):
            timer.watch(loop.time() + seconds, queue, work(1.0))
            await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), PATIENCE)

    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        runner.run(scenario())
    assert len(expired) == 200
