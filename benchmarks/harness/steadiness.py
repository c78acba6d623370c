"""Whether a server that has run for long is as it was: samples over time, and lines through their second half."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Fewer samples in the second half say nothing.
LEAST_SAMPLES = 6
# Of a table for people.
SHOWN = 24


@dataclass(frozen=True)
class Moment:
    """What a server took at one time. NaN or None: nobody could ask."""

    at_s: float
    memory_mib: float  # of the whole process tree
    descriptors: int
    threads: int
    # What the server says of itself.
    in_flight: int
    # Of the probe since the moment before.
    probes: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Figure:
    """What may not grow, and by how much it may seem to over the second half: a share of its median, or at least so
    much in its unit."""

    of: Callable[[Moment], float]
    share: float
    least: float


FIGURES: Mapping[str, Figure] = {
    "memory MiB": Figure(lambda moment: moment.memory_mib, 0.05, 8.0),
    "descriptors": Figure(lambda moment: moment.descriptors, 0.1, 8.0),
    "threads": Figure(lambda moment: moment.threads, 0.1, 2.0),
    "requests in flight": Figure(lambda moment: moment.in_flight, 0.5, 8.0),
    "p50 ms": Figure(lambda moment: moment.p50_ms, 0.2, 0.5),
    "p99 ms": Figure(lambda moment: moment.p99_ms, 0.5, 5.0),
}


@dataclass(frozen=True)
class Verdict:
    """`growth` is that of a line through the second half, from its beginning to its end."""

    figure: str
    median: float
    growth: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.growth <= self.allowed


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs (Theil and Sen): a few outliers do not bend it."""
    return statistics.median((y - b) / (x - a) for (a, b), (x, y) in itertools.combinations(points, 2))


def judge(moments: Sequence[Moment]) -> list[Verdict]:
    """Nothing if there are too few moments to say."""
    half = moments[len(moments) // 2 :]
    if len(half) < LEAST_SAMPLES:
        return []
    seconds = half[-1].at_s - half[0].at_s
    verdicts = []
    for name, figure in FIGURES.items():
        points = [(moment.at_s, figure.of(moment)) for moment in half]
        middle = statistics.median(value for _, value in points)
        allowed = max(figure.share * middle, figure.least)
        verdicts.append(Verdict(name, middle, slope(points) * seconds, allowed))
    return verdicts


def thinned(moments: Sequence[Moment], most: int = SHOWN) -> list[Moment]:
    """So many of them, evenly spread, the first and the last included."""
    if len(moments) <= most:
        return list(moments)
    return [moments[round(index * (len(moments) - 1) / (most - 1))] for index in range(most)]
