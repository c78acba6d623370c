"""Bounds on a rate of which some cases were seen (Clopper and Pearson, "The Use of Confidence or Fiducial Limits",
1934)."""

from __future__ import annotations

import math


def upper_bound(events: int, trials: int, delta: float) -> float:
    """The rate at which so few `events` in `trials` or fewer have the probability `delta`. 1 without a trial."""
    return 1.0 - lower_bound(trials - events, trials, delta)


def lower_bound(events: int, trials: int, delta: float) -> float:
    """The rate at which so many `events` in `trials` or more have the probability `delta`. 0 without a trial."""
    if events == 0:
        return 0.0
    low, high = 0.0, events / trials
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(events, trials, middle) < delta else (low, middle)
    return low


def _at_least(events: int, trials: int, probability: float) -> float:
    """Of a binomial distribution; the sum goes outwards from its largest term, which is the first."""
    if probability <= 0:
        return 0.0
    odds = probability / (1 - probability)
    term = math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(events + 1)
        - math.lgamma(trials - events + 1)
        + events * math.log(probability)
        + (trials - events) * math.log1p(-probability)
    )
    total = 0.0
    for count in range(events, trials + 1):
        total += term
        if term < total * 1e-17:
            break
        term *= (trials - count) / (count + 1) * odds
    return total
