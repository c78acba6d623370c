"""Which thresholds an early-exit route should have: the cheapest ones that agree with the reference as often as wanted.

All of it from what every exit said about the same examples; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from offramp_adapters.confidence.binomial import upper_bound

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

# A threshold that no score reaches.
NEVER = 2.0
# Values of each threshold that are tried: as many quantiles of its scores.
CANDIDATES = 200
# Steps on the way from one candidate to another; the long ones get past stretches where a short one changes nothing.
_STRIDES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the exits said about N examples, and what stages cost."""

    # [exits, N]: how sure each exit was. NaN never exits.
    scores: Floats
    # [exits, N]: whether its answer agrees with the reference's.
    agrees: Flags
    # [exits + 1]: seconds per item of each stage alone, the reference last.
    costs: Floats

    def __post_init__(self) -> None:
        exits, examples = self.scores.shape
        if self.agrees.shape != (exits, examples) or self.costs.shape != (exits + 1,):
            raise ValueError(
                f"shapes {self.scores.shape}, {self.agrees.shape}, {self.costs.shape} do not belong together"
            )

    @property
    def examples(self) -> int:
        return int(self.scores.shape[1])


@dataclass(frozen=True, slots=True)
class Point:
    """One choice of thresholds, and what it comes to on some evidence."""

    # One for each exit.
    thresholds: tuple[float, ...]
    disagreements: int
    examples: int
    # Mean seconds per item.
    cost: float
    # Share of the items that leave at each stage, the reference last.
    shares: tuple[float, ...]

    @property
    def agreement(self) -> float:
        return 1.0 - self.disagreements / self.examples


def outcome(evidence: Evidence, thresholds: tuple[float, ...]) -> Point:
    """What these thresholds come to: every item leaves at the first exit that is sure enough."""
    exits = len(evidence.costs) - 1
    # NaN is no number that reaches anything.
    sure = evidence.scores >= np.asarray(thresholds)[:, None]
    left_at = np.where(sure.any(axis=0), sure.argmax(axis=0), exits)
    early = left_at < exits
    agrees = evidence.agrees[left_at[early], np.flatnonzero(early)]
    counts = np.bincount(left_at, minlength=exits + 1)
    cost = float(np.cumsum(evidence.costs)[left_at].mean())
    shares = tuple(float(share) for share in counts / evidence.examples)
    return Point(thresholds, int((~agrees).sum()), evidence.examples, cost, shares)


def curve(evidence: Evidence) -> list[Point]:
    """Points from "all defer" to "all leave at the first exit", each reached from the one before by lowering the one
    threshold that saves most for each new disagreement (a greedy walk; with one exit it visits every candidate)."""
    candidates = [_candidates(scores) for scores in evidence.scores]
    places = [0] * len(candidates)
    points = [outcome(evidence, tuple(values[0] for values in candidates))]
    while (step := _best_step(evidence, candidates, places, points[-1])) is not None:
        places, point = step
        points.append(point)
    return points


def choose(points: list[Point], agreement: float, delta: float) -> Point:
    """The cheapest point whose disagreement is below 1 - `agreement` with confidence 1 - `delta`, were it the only one
    looked at; among many it is somewhat too good, so measure it again on other examples. "All defer" always will do."""
    limit = 1.0 - agreement
    good = [point for point in points if _disagreement_bound(point, delta) <= limit]
    return min(good, key=lambda point: point.cost, default=points[0])


def _disagreement_bound(point: Point, delta: float) -> float:
    # Nothing that leaves early cannot disagree.
    early = round((1.0 - point.shares[-1]) * point.examples)
    return 0.0 if early == 0 else upper_bound(point.disagreements, point.examples, delta)


def _candidates(scores: Floats) -> list[float]:
    """Thresholds from one that nothing reaches down to one that everything reaches."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return [NEVER]
    values = np.unique(np.quantile(finite, np.linspace(0, 1, CANDIDATES), method="higher"))
    return [NEVER, *(float(value) for value in values[::-1])]


def _best_step(
    evidence: Evidence, candidates: list[list[float]], places: list[int], now: Point
) -> tuple[list[int], Point] | None:
    best: tuple[float, list[int], Point] | None = None
    for moved in _moves(candidates, places):
        point = outcome(evidence, tuple(values[place] for values, place in zip(candidates, moved, strict=True)))
        added = max(0, point.disagreements - now.disagreements)
        worth = (now.cost - point.cost) / (added + 1)
        if best is None or worth > best[0]:
            best = (worth, moved, point)
    return None if best is None else (best[1], best[2])


def _moves(candidates: list[list[float]], places: list[int]) -> Iterator[list[int]]:
    for exit, values in enumerate(candidates):
        strides = _STRIDES if len(candidates) > 1 else _STRIDES[:1]
        for place in {min(places[exit] + stride, len(values) - 1) for stride in strides}:
            if place > places[exit]:
                yield [*places[:exit], place, *places[exit + 1 :]]
