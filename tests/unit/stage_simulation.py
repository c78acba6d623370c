"""Two stages and a scheduler on a clock that jumps: how many requests a rule answers, and how late, without waiting.

The scheduler is the real one. Time passes only while everybody waits, so that hundreds of seconds take none.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from offramp_server.scheduling.batch import Batch, BatchSink
from offramp_server.scheduling.held import HeldMemory
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.policy import ShallowFirst
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.scheduling.work import Timing, Work
from offramp_server.telemetry.stats import ModelStats, Stats
from open_inference.tensor import Tensor
from scheduling_fakes import spec

MAX_BATCH = 16
CALLERS = 32

Cost = Callable[[int], float]


class JumpingClock(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: when nothing else is left to do, its time jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: JumpingClock) -> None:
        super().__init__()
        self._of = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._of.now += max(0.0, timeout or 0.0)
        return super().select(0)


class TimedExecutor:
    """Takes as long for a batch as its model's cost says, one batch after the other."""

    slots = 3

    def __init__(self, sink: BatchSink, name: str, costs: dict[int, Cost], loop: JumpingClock) -> None:
        self.name = name
        self.held = HeldMemory(loop, 1 << 20, lambda numbers: None)
        self.busy_seconds = 0.0
        # Items of every batch, by model.
        self.sizes: dict[int, list[int]] = {handle: [] for handle in costs}
        self._sink = sink
        self._costs = costs
        self._loop = loop
        self._batches: list[Batch] = []

    @property
    def in_flight(self) -> int:
        return len(self._batches)

    def holds(self, handle: int) -> bool:
        return handle in self._costs

    def submit(self, batch: Batch) -> None:
        self._batches.append(batch)
        self.sizes[batch.handle].append(batch.items)
        if len(self._batches) == 1:
            self._begin()

    def _begin(self) -> None:
        batch = self._batches[0]
        seconds = self._costs[batch.handle](batch.items)
        self.busy_seconds += seconds
        self._loop.call_later(seconds, self._end, seconds)

    def _end(self, seconds: float) -> None:
        batch = self._batches.pop(0)
        if self._batches:
            self._begin()
        answer = Tensor.from_numpy("y", np.zeros((batch.items, 1), dtype=np.float32))
        self._sink.completed(self, batch, [answer], Timing(0, int(seconds * 1e9), 0))


class DeepestFirst(ShallowFirst):
    """By age alone, which is the same: never accumulates."""

    def _gathers(self, lane: Lane, head: Work) -> bool:
        return False


class ShallowAlways(ShallowFirst):
    """Starves the deep stage."""

    def _gathers(self, lane: Lane, head: Work) -> bool:
        return True


@dataclass(frozen=True)
class Outcome:
    """Of one simulated run."""

    rate: float
    latencies: Sequence[float]
    deep_batch: float
    idle_share: float

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def flat(fixed: float, per_item: float) -> Cost:
    return lambda items: fixed + per_item * items


def curve(cost: Cost) -> dict[int, float]:
    """What a warm-up would have measured."""
    return {1: cost(1), MAX_BATCH: cost(MAX_BATCH)}


class Stages:
    """One shallow and one deep model on some executors of one device."""

    def __init__(
        self, loop: JumpingClock, shallow: Cost, deep: Cost, executors: int = 1, rule: type[ShallowFirst] = ShallowFirst
    ) -> None:
        self.loop = loop
        self.scheduler = Scheduler(Stats(), max_attempts=2, loop=loop, clock=loop.time_ns)
        self.scheduler._policy = rule(loop.time_ns)
        whole = spec(max_batch_size=MAX_BATCH, max_queue_items=10_000)
        self.lanes = [Lane(at, whole, ModelStats(), curve(cost)) for at, cost in enumerate((shallow, deep), 1)]
        costs = {1: shallow, 2: deep}
        self.executors = [TimedExecutor(self.scheduler, f"e{at}", costs, loop) for at in range(executors)]
        for lane in self.lanes:
            self.scheduler.open_lane(lane)
        for executor in self.executors:
            self.scheduler.attach(executor)

    async def ask(self, deferred: bool, **fields: Any) -> float:
        """Seconds from a request to its answer, which it has after the first stage or after the second."""
        arrived_ns: int = self.loop.time_ns()
        for depth in range(1 + deferred):
            future: asyncio.Future[Any] = self.loop.create_future()
            row = [Tensor("x", "FP32", (1, 1), bytes(4))]
            work = Work(
                row, 1, (1,), future, arrived_ns=arrived_ns, depth=depth, may_continue=depth == 0, **fields
            )  # fmt: skip
            await self.scheduler.run(self.lanes[depth], work)
        return self.loop.time() - arrived_ns / 1e9


def closed_loop(stages: Callable[[JumpingClock], Stages], deferred_share: float, requests: int = 1500) -> Outcome:
    """Callers that ask again as soon as they are answered; who is deferred does not depend on the rule."""
    loop = JumpingClock()
    coins = random.Random(7)
    deferred = [coins.random() < deferred_share for _ in range(requests)]

    async def run() -> Outcome:
        world = stages(loop)
        latencies: list[float] = []
        coming = iter(deferred)

        async def caller() -> None:
            latencies.extend([await world.ask(each) for each in coming])

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return outcome(world, latencies)

    return simulate(run(), loop)


def open_loop(
    stages: Callable[[JumpingClock], Stages], deferred_share: float, rate: float, requests: int = 1500
) -> Outcome:
    """Requests that come at random times, whether others are answered or not."""
    loop = JumpingClock()
    coins = random.Random(7)

    async def run() -> Outcome:
        world = stages(loop)
        tasks: list[asyncio.Task[float]] = []
        for _ in range(requests):
            await asyncio.sleep(coins.expovariate(rate))
            tasks.append(asyncio.create_task(world.ask(coins.random() < deferred_share)))
        return outcome(world, await asyncio.gather(*tasks))

    return simulate(run(), loop)


def outcome(world: Stages, latencies: Sequence[float]) -> Outcome:
    sizes = [size for executor in world.executors for size in executor.sizes[2]]
    busy = sum(executor.busy_seconds for executor in world.executors)
    elapsed = world.loop.time()
    return Outcome(
        len(latencies) / elapsed, latencies, sum(sizes) / max(1, len(sizes)), 1 - busy / elapsed / len(world.executors)
    )


def naive_closed_loop(shallow: Cost, deep: Cost, deferred_share: float, requests: int = 1500) -> Outcome:
    """One executor that computes a batch of both stages before it begins another: nobody is answered before the last
    item of the batch is."""
    coins = random.Random(7)
    deferred = [coins.random() < deferred_share for _ in range(requests)]
    now, latencies, sizes = 0.0, list[float](), list[int]()
    arrivals = [0.0] * CALLERS
    while deferred:
        batch = [deferred.pop(0) for _ in range(min(MAX_BATCH, len(deferred)))]
        arrived, arrivals = arrivals[: len(batch)], arrivals[len(batch) :]
        deep_items = sum(batch)
        now += shallow(len(batch)) + (deep(deep_items) if deep_items else 0.0)
        sizes += [deep_items] if deep_items else []
        latencies += [now - when for when in arrived]
        arrivals += [now] * len(batch)
    return Outcome(requests / now, latencies, sum(sizes) / max(1, len(sizes)), 0.0)


def simulate(main: Coroutine[Any, Any, Outcome], loop: JumpingClock) -> Outcome:
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
