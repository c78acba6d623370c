"""Bounds on a rate of which some cases were seen."""

from __future__ import annotations

import math

import numpy as np

_PRECISION = 1e-9


def upper_bound(events: int, trials: int, delta: float) -> float:
    """The highest rate at which so few `events` in `trials` have a chance of at least `delta` (Clopper and Pearson,
    "The Use of Confidence or Fiducial Limits", 1934). 1 without a trial."""
    if events >= trials:
        return 1.0
    coefficients = _log_binomials(trials, events)
    low, high = events / trials, 1.0
    while high - low > _PRECISION:
        rate = (low + high) / 2
        if _chance_of_at_most(events, trials, rate, coefficients) >= delta:
            low = rate
        else:
            high = rate
    return high


def lower_bound(events: int, trials: int, delta: float) -> float:
    """The mirror of `upper_bound`. 0 without a trial."""
    return 1.0 - upper_bound(trials - events, trials, delta)


def _chance_of_at_most(events: int, trials: int, rate: float, coefficients: np.ndarray) -> float:
    counts = np.arange(events + 1)
    logs = coefficients + counts * math.log(rate) if rate > 0 else np.where(counts == 0, 0.0, -np.inf)
    logs = logs + (trials - counts) * math.log1p(-rate) if rate < 1 else logs
    return float(np.exp(np.logaddexp.reduce(logs)))


def _log_binomials(trials: int, events: int) -> np.ndarray:
    """Logarithms of "trials over k" for k from 0 to `events`."""
    steps = np.arange(events, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(np.log(trials - steps) - np.log(steps + 1))])
