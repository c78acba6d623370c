"""The level of load of a server, from its queues. Time and computation are moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from offramp_adapters.routes.strategy import Level
from offramp_server.config import LoadSettings
from offramp_server.routing.load import LOOK_SECONDS, LoadMonitor
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.telemetry.stats import Stats
from scheduling_fakes import HandClock, HandExecutor, lane, on_hand_clock, settle, work

# Of one item of the lane, which is what it may wait as well.
SECONDS = 0.1


class Bench:
    """A monitor over one lane of one worker, whose every item takes as long as an item may wait."""

    def __init__(self, loop: HandClock, settings: LoadSettings) -> None:
        self.loop = loop
        self.stats = Stats()
        self.scheduler = Scheduler(self.stats, 2, loop, self.nanoseconds)
        self.lane = lane(seconds=SECONDS, max_batch_size=1)
        self.scheduler.open_lane(self.lane)
        self.executor = HandExecutor(self.scheduler)
        self.scheduler.attach(self.executor)
        self.inside = 0
        self.monitor = LoadMonitor(
            settings, lambda: [self.scheduler], lambda: self.inside, self.stats, loop, self.nanoseconds
        )

    def nanoseconds(self) -> int:
        return round((1000 + self.loop.now) * 1e9)

    async def ask(self, count: int, **fields: Any) -> Level:
        """Of the last of so many requests."""
        level = self.monitor.level
        for _ in range(count):
            level = self.monitor.arrival()
            task = asyncio.create_task(self.scheduler.run(self.lane, work(1, **fields)))
            self.inside += 1
            task.add_done_callback(self._left)
        await settle()
        return level

    def _left(self, task: asyncio.Task[Any]) -> None:
        self.inside -= 1
        # Expired or answered, and nobody's concern here.
        task.exception()

    async def pass_time(self, seconds: float) -> Level:
        for _ in range(round(seconds / LOOK_SECONDS)):
            await self.loop.advance(LOOK_SECONDS)
        return self.monitor.level

    async def finish_all(self) -> None:
        while self.executor.batches:
            self.executor.finish(infer_ns=round(SECONDS * 1e9))
            await settle()


def play(scenario: Callable[[Bench], Coroutine[Any, Any, None]], settings: LoadSettings | None = None) -> None:
    loop = HandClock()

    async def run() -> None:
        bench = Bench(loop, settings or LoadSettings(target_wait=SECONDS))
        await scenario(bench)
        bench.monitor.close()
        await bench.finish_all()

    on_hand_clock(run(), loop)


def test_more_work_than_may_wait_is_overload_before_anybody_has_waited_so_long() -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.ask(20) is Level.NORMAL
        assert await bench.pass_time(SECONDS) is not Level.NORMAL
        assert await bench.pass_time(0.2) is Level.OVERLOADED
        assert await bench.ask(1) is Level.OVERLOADED

    play(scenario)


def test_whoever_is_first_in_the_queue_for_too_long_is_overload_however_short_it_is() -> None:
    async def scenario(bench: Bench) -> None:
        # One is computed, one sent ahead, and one waits: as long as it may.
        await bench.ask(3)
        assert await bench.pass_time(0.15) < Level.OVERLOADED
        assert await bench.pass_time(1.0) is Level.OVERLOADED

    play(scenario)


def test_a_deadline_that_is_near_counts_more_than_the_settings() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask(3, deadline=bench.loop.now + 3600.0)
        assert await bench.pass_time(2.0) <= Level.NORMAL

    async def pressed(bench: Bench) -> None:
        await bench.ask(3, deadline=bench.loop.now + 3.0)
        assert await bench.pass_time(2.0) is Level.OVERLOADED

    play(scenario, LoadSettings(target_wait=60.0))
    play(pressed, LoadSettings(target_wait=60.0))


def test_what_nobody_waits_for_is_no_load() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask(50, background=True)
        assert await bench.pass_time(0.5) is Level.NORMAL
        await bench.finish_all()
        assert await bench.pass_time(5.0) is Level.IDLE

    play(scenario)


def test_after_the_overload_the_level_falls_to_idle_and_every_change_is_counted() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask(20)
        await bench.pass_time(0.5)
        await bench.finish_all()
        assert await bench.pass_time(30.0) is Level.IDLE
        changes = bench.stats.load_level_changes
        falls = [(Level.OVERLOADED, Level.BUSY), (Level.BUSY, Level.NORMAL), (Level.NORMAL, Level.IDLE)]
        assert [changes[fall] for fall in falls] == [1, 1, 1]
        rises = sum((after - before) * count for (before, after), count in changes.items() if after > before)
        assert rises == 2

    play(scenario)


def test_a_server_in_which_nothing_happens_is_not_looked_at() -> None:
    async def scenario(bench: Bench) -> None:
        looks: list[float] = []
        call_later = bench.loop.call_later

        def noted(delay: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            looks.append(bench.loop.now)
            return call_later(delay, callback, *args, **kwargs)

        bench.loop.call_later = noted  # type: ignore[method-assign, assignment]
        await bench.pass_time(1.0)
        assert looks == []
        await bench.ask(1)
        await bench.finish_all()
        assert await bench.pass_time(20.0) is Level.IDLE
        count = len(looks)
        await bench.pass_time(20.0)
        assert len(looks) == count
        await bench.ask(3)
        assert await bench.pass_time(1.0) > Level.IDLE

    play(scenario)


def test_without_the_controller_the_level_is_always_normal() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask(50)
        assert await bench.pass_time(5.0) is Level.NORMAL

    play(scenario, LoadSettings(enabled=False, target_wait=SECONDS))


def test_whoever_wants_to_know_is_told_of_each_change() -> None:
    async def scenario(bench: Bench) -> None:
        told: list[Level] = []
        bench.monitor.on_change = lambda: told.append(bench.monitor.level)
        await bench.ask(20)
        await bench.pass_time(0.5)
        assert told[-1] is Level.OVERLOADED
        assert len(told) == sum(bench.stats.load_level_changes.values())

    play(scenario)
