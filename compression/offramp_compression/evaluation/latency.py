"""How long a model takes, beside others, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from offramp_compression.evaluation.bootstrap import Bootstrap, Estimate

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """One batch size of one model. Seconds a call, median over rounds, and items a second."""

    batch_size: int
    seconds: Estimate
    # Of a processor, while this batch size was timed; see `load.ProcessorShare`.
    processor_share: float = 1.0

    @property
    def items_per_second(self) -> float:
        return self.batch_size / self.seconds.value


def time_side_by_side(
    calls: Mapping[str, Call],
    *,
    rounds: int = 15,
    minimum: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Estimate]:
    """Median seconds of each call. A round times every one of them, so that a busy moment of the machine hits all.

    A call shorter than ``minimum`` seconds is repeated within its round until it takes that long. The interval is the
    bootstrap's, of the median over rounds.
    """
    repeats = {name: _repeats(call, minimum, clock) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(_timed(call, repeats[name], clock))
    return {name: _median(np.asarray(times)) for name, times in seconds.items()}


def _repeats(call: Call, minimum: float, clock: Callable[[], float]) -> int:
    # The first call may compile or allocate, and is not what is to be known.
    call()
    once = max(_timed(call, 1, clock), 1e-9)
    return max(1, round(minimum / once))


def _timed(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(repeats):
        call()
    return (clock() - started) / repeats


def _median(times: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    return Bootstrap(resamples=500).estimate(len(times), lambda rows: float(np.median(times[rows])))
