"""Intervals for figures that were estimated on a sample (Efron, Bootstrap Methods, 1979)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and between which bounds it would lie on other samples of the same size, at the level asked for.

    The bounds are NaN where they were not estimated.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made: percentiles of the statistic over samples drawn with replacement.

    The same seed draws the same rows for every statistic on the same number of examples, so two models are compared on
    the same samples.
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def estimate(self, count: int, statistic: Callable[[Rows], float]) -> Estimate:
        """The statistic over all of ``count`` examples, which it is given as row numbers, and its interval.

        Samples on which the statistic is undefined (NaN) do not count; with fewer than half left there is no interval.
        """
        value = float(statistic(np.arange(count)))
        if self.resamples == 0:
            return Estimate(value)
        draws = np.asarray([statistic(rows) for rows in self._samples(count)])
        defined = draws[~np.isnan(draws)]
        if 2 * len(defined) < len(draws):
            return Estimate(value)
        tail = (1 - self.level) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))

    def mean(self, values: NDArray[Any]) -> Estimate:
        """The mean of one value an example."""
        return self.estimate(len(values), lambda rows: float(values[rows].mean()))

    def _samples(self, count: int) -> Any:
        random = np.random.default_rng(self.seed)
        return (random.integers(0, count, count) for _ in range(self.resamples))
