"""Load on a server: calls from a fixed number of callers, or at a fixed rate, timed and counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from offramp_client.errors import OfframpError

#: One request. Raises an OfframpError of the client.
Call: TypeAlias = Callable[[], Awaitable[object]]

# Pause of a caller that was refused, unless the server says how long: refusals at full speed are no load to measure.
REFUSED_PAUSE_SECONDS = 0.01


@dataclass(slots=True)
class Measurement:
    """One period of load. Times are in seconds."""

    latencies: list[float] = field(default_factory=list)
    # By status code.
    errors: Counter[str] = field(default_factory=Counter)
    # Arrivals at a fixed rate that were not sent, as too many calls were waiting already.
    unsent: int = 0
    seconds: float = 0.0
    # Of the measuring process itself, all its threads.
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    @property
    def client_load(self) -> float:
        """Cores that the client kept busy."""
        return self.cpu_seconds / self.seconds

    def percentile(self, percent: float) -> float:
        """NaN without a single answer."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")


async def closed_loop(call: Call, concurrency: int, seconds: float) -> Measurement:
    """`concurrency` callers, each of which sends its next request when the last one is answered."""
    clock = asyncio.get_running_loop().time
    async with _measured() as measurement:
        end = clock() + seconds
        async with asyncio.TaskGroup() as callers:
            for _ in range(concurrency):
                callers.create_task(_caller(call, end, measurement))
    return measurement


async def open_loop(call: Call, rate: float, seconds: float, max_waiting: int, seed: int = 0) -> Measurement:
    """Requests arrive at random (a Poisson process of `rate` per second), whether earlier ones are answered or not.

    A latency counts from the arrival, so that a server that stalls is seen by everyone who would have come meanwhile
    (the "coordinated omission" of closed loops; Gil Tene, How NOT to Measure Latency, 2013).
    """
    clock = asyncio.get_running_loop().time
    draw = np.random.default_rng(seed)
    waiting: set[asyncio.Task[float | None]] = set()
    async with _measured() as measurement:
        arrival = start = clock()
        while (arrival := arrival + draw.exponential(1 / rate)) < start + seconds:
            await asyncio.sleep(arrival - clock())
            if len(waiting) >= max_waiting:
                measurement.unsent += 1
                continue
            task = asyncio.create_task(_timed(call, arrival, measurement))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)
    return measurement


@asynccontextmanager
async def _measured() -> AsyncIterator[Measurement]:
    measurement = Measurement()
    clock = asyncio.get_running_loop().time
    started, cpu = clock(), time.process_time()
    yield measurement
    measurement.seconds, measurement.cpu_seconds = clock() - started, time.process_time() - cpu


async def _caller(call: Call, end: float, measurement: Measurement) -> None:
    clock = asyncio.get_running_loop().time
    while (started := clock()) < end:
        pause = await _timed(call, started, measurement)
        if pause is not None:
            await asyncio.sleep(min(pause, max(0.0, end - clock())))


async def _timed(call: Call, started: float, measurement: Measurement) -> float | None:
    """After an error: the seconds to stay away."""
    try:
        await call()
    except OfframpError as error:
        measurement.errors[error.code] += 1
        return REFUSED_PAUSE_SECONDS if error.retry_after is None else error.retry_after
    measurement.latencies.append(asyncio.get_running_loop().time() - started)
    return None
