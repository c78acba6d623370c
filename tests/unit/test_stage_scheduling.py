"""What requests of several stages, and what nobody waits for, may expect of the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from offramp_server.errors import Overloaded
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.policy import ShallowFirst
from offramp_server.scheduling.scheduler import MAX_QUIET_NS, Scheduler
from offramp_server.scheduling.work import Answer
from offramp_server.telemetry.stats import ModelStats, Stats
from scheduling_fakes import HandClock, HandExecutor, on_hand_clock, settle, spec, work
from stage_simulation import (
    Cost,
    DeepestFirst,
    Outcome,
    ShallowAlways,
    Stages,
    closed_loop,
    flat,
    naive_closed_loop,
    open_loop,
)

# As measured on a CPU, where the deep stage costs ten times as much and batching saves nothing ...
FLAT = (flat(0.0001, 0.0008), flat(0.0005, 0.0085))
# ... and as on a GPU, where a batch costs hardly more than an item.
SUBLINEAR = (flat(0.002, 0.00005), flat(0.01, 0.0002))
# Seconds that a batch of one and of four takes: there, and here.
GATHERING, FLAT_CURVE = {1: 1.0, 4: 1.2}, {1: 1.0, 4: 4.0}


def answered(costs: tuple[Cost, Cost], deferred: float, rule: type[ShallowFirst], executors: int = 1) -> Outcome:
    return closed_loop(lambda loop: Stages(loop, *costs, executors, rule), deferred)


@pytest.mark.parametrize(("deferred", "gain"), [(0.1, 2.0), (0.3, 1.5)])
def test_where_batching_pays_stages_answer_far_more_than_the_naive_way_or_the_deepest_first(
    deferred: float, gain: float
) -> None:
    ours = answered(SUBLINEAR, deferred, ShallowFirst)
    assert ours.rate > gain * naive_closed_loop(*SUBLINEAR, deferred).rate
    assert ours.rate > gain * answered(SUBLINEAR, deferred, DeepestFirst).rate
    assert ours.deep_batch > 2 * answered(SUBLINEAR, deferred, DeepestFirst).deep_batch


@pytest.mark.parametrize("deferred", [0.1, 0.3])
@pytest.mark.parametrize("executors", [1, 2])
def test_where_batching_saves_nothing_stages_answer_as_many_as_by_age_and_as_early(
    deferred: float, executors: int
) -> None:
    ours, by_age = (answered(FLAT, deferred, rule, executors) for rule in (ShallowFirst, DeepestFirst))
    assert ours.rate == pytest.approx(by_age.rate, rel=0.02)
    assert ours.percentile(0.99) <= 1.02 * by_age.percentile(0.99)
    if executors == 1:
        naive = naive_closed_loop(*FLAT, deferred)
        assert ours.rate > 0.98 * naive.rate
        assert ours.percentile(0.99) < 1.3 * naive.percentile(0.99)


@pytest.mark.parametrize("costs", [FLAT, SUBLINEAR])
@pytest.mark.parametrize("deferred", [0.1, 0.3])
def test_the_deep_stage_does_not_starve(costs: tuple[Cost, Cost], deferred: float) -> None:
    ours, starved = (answered(costs, deferred, rule) for rule in (ShallowFirst, ShallowAlways))
    assert ours.percentile(0.99) < 0.8 * starved.percentile(0.99)
    assert ours.percentile(1) < starved.percentile(1)


@pytest.mark.parametrize("costs", [FLAT, SUBLINEAR])
def test_neither_do_the_shallow_ones_under_a_load_that_the_executor_can_bear(costs: tuple[Cost, Cost]) -> None:
    shallow, deep = costs
    capacity = 16 / (shallow(16) + 0.1 * deep(16))
    ours, by_age = (
        open_loop(lambda loop, rule=rule: Stages(loop, *costs, 1, rule), 0.1, 0.75 * capacity)  # type: ignore[misc]
        for rule in (ShallowFirst, DeepestFirst)
    )
    assert ours.rate > 0.95 * 0.75 * capacity
    assert ours.percentile(0.5) <= by_age.percentile(0.5)
    assert ours.percentile(0.99) <= 1.02 * by_age.percentile(0.99)


@pytest.mark.parametrize("costs", [FLAT, SUBLINEAR])
def test_two_executors_that_take_either_stage_answer_nearly_twice_as_many_and_are_never_idle(
    costs: tuple[Cost, Cost],
) -> None:
    one, two = (answered(costs, 0.1, ShallowFirst, executors) for executors in (1, 2))
    assert two.rate > 1.8 * one.rate
    # All that is left is the end, when nobody asks any more.
    assert two.idle_share < 0.03


class Bench:
    """A shallow and a deep model on one executor, finished by hand."""

    def __init__(self, loop: HandClock, seconds: dict[int, float], limit: int = 100) -> None:
        self.loop = loop
        self.seconds = seconds
        self.scheduler = Scheduler(Stats(), max_attempts=2, loop=loop, clock=lambda: int(loop.now * 1e9))
        models = spec(max_queue_items=limit)
        self.shallow, self.deep = (Lane(handle, models, ModelStats(), seconds) for handle in (1, 2))
        for lane in (self.shallow, self.deep):
            self.scheduler.open_lane(lane)
        self.executor = HandExecutor(self.scheduler)
        self.scheduler.attach(self.executor)
        self.tasks: list[asyncio.Task[Answer]] = []

    def ask(self, *values: float, to: Lane | None = None, **fields: Any) -> None:
        for value in values:
            request = work(value, **fields)
            self.tasks.append(asyncio.create_task(self.scheduler.run(to or self.shallow, request)))

    def defer(self, *values: float, **fields: Any) -> None:
        """Older than whatever waits at the shallow stage."""
        self.ask(*values, to=self.deep, depth=1, arrived_ns=1, **fields)

    async def finish(self) -> None:
        further = self.executor.batches[0].items - 1
        per_further = (self.seconds[4] - self.seconds[1]) / 3
        self.executor.finish(int((self.seconds[1] + further * per_further) * 1e9))
        await settle()

    async def finish_all(self) -> None:
        while self.executor.batches:
            await self.finish()
            if not self.executor.batches:
                await self.quiet()

    async def quiet(self) -> None:
        """Nobody comes for so long that what nobody waits for may begin."""
        await self.loop.advance(MAX_QUIET_NS / 1e9)


Scenario = Callable[[Bench], Coroutine[Any, Any, None]]


def play(scenario: Scenario, seconds: dict[int, float] = GATHERING, limit: int = 100) -> None:
    loop = HandClock()
    loop.now = 100.0

    async def run() -> None:
        bench = Bench(loop, seconds, limit)
        await scenario(bench)
        await bench.finish_all()
        await asyncio.gather(*bench.tasks)

    on_hand_clock(run(), loop)


def test_an_idle_executor_takes_a_deferred_item_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.defer(1)
        await settle()
        assert bench.executor.seen == [[1]]

    play(scenario)


def test_a_deep_stage_gathers_behind_the_shallow_one_where_that_pays() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1)
        bench.defer(10)
        await settle()
        await bench.finish()
        assert bench.executor.seen == [[0], [1]]

    play(scenario)


def test_a_full_deep_batch_goes_before_the_shallow_ones() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1)
        bench.defer(10, 11, 12, 13)
        await settle()
        await bench.finish()
        assert bench.executor.seen == [[0], [10, 11, 12, 13]]

    play(scenario)


def test_a_deferred_item_that_has_waited_for_as_long_as_gathering_pays_goes_before_the_shallow_ones() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.defer(10)
        await settle()
        bench.loop.now += bench.deep.cost.gather_seconds
        bench.defer(11)
        bench.ask(1)
        await settle()
        await bench.finish()
        assert bench.executor.seen == [[0], [10, 11]]

    play(scenario)


def test_where_batching_saves_nothing_a_deferred_item_goes_by_its_age() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1)
        bench.defer(10)
        await settle()
        await bench.finish()
        assert bench.executor.seen == [[0], [10]]

    play(scenario, FLAT_CURVE)


def test_nothing_is_sent_ahead_of_items_that_may_come_back_for_the_next_stage() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0, may_continue=True)
        await settle()
        bench.ask(1, 2, 3, 4)
        await settle()
        assert bench.executor.seen == [[0]]
        await bench.finish()
        assert bench.executor.seen == [[0], [1, 2, 3, 4]]

    play(scenario)


def test_priority_goes_before_depth() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1)
        bench.defer(10, priority=1)
        await settle()
        await bench.finish()
        assert bench.executor.seen == [[0], [10]]

    play(scenario)


def test_what_nobody_waits_for_goes_last_and_shares_no_batch() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1, background=True, arrived_ns=1, priority=1)
        bench.ask(2)
        bench.ask(3, to=bench.deep)
        await settle()
        await bench.finish_all()
        assert bench.executor.seen == [[0], [2], [3], [1]]

    play(scenario)


def test_what_nobody_waits_for_is_not_sent_ahead_and_in_small_batches_where_large_ones_take_longer() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(*range(8), background=True)
        await settle()
        assert bench.executor.seen == [[0, 1]]
        bench.ask(9)
        await settle()
        await bench.finish_all()
        assert bench.executor.seen == [[0, 1], [9], [2, 3], [4, 5], [6, 7]]

    play(scenario, FLAT_CURVE)


def test_what_nobody_waits_for_does_not_slip_in_before_callers_who_call_again_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1, background=True)
        for again in (2, 3):
            await bench.finish()
            await bench.loop.advance(0.9 * MAX_QUIET_NS / 1e9)
            assert bench.executor.batches == []
            bench.ask(again)
            await settle()
        await bench.finish()
        await bench.quiet()
        assert bench.executor.seen == [[0], [2], [3], [1]]

    play(scenario)


def test_a_cheap_batch_that_nobody_waits_for_need_not_wait_for_longer_than_it_takes() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1, background=True)
        await bench.finish()
        await bench.loop.advance(0.002)
        assert bench.executor.seen == [[0], [1]]

    play(scenario, {1: 0.0015, 4: 0.0015})


def test_what_nobody_waits_for_is_computed_in_large_batches_where_they_take_no_longer() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(*range(8), background=True)
        await settle()
        await bench.finish_all()
        assert bench.executor.seen == [[0, 1, 2, 3], [4, 5, 6, 7]]

    play(scenario)


def test_what_nobody_waits_for_has_a_limit_of_its_own_and_takes_no_place_from_others() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(0)
        await settle()
        bench.ask(1, 2, background=True)
        bench.ask(3, 4)
        await settle()
        for background in (True, False):
            with pytest.raises(Overloaded, match="2 items wait"):
                await bench.scheduler.run(bench.shallow, work(5, background=background))
        await bench.finish_all()
        assert bench.executor.seen == [[0], [3, 4], [1, 2]]

    play(scenario, limit=2)
