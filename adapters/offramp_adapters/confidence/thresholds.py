"""Which thresholds an early-exit route should have: the cheapest ones that agree with the reference as often as wanted.

All of it from what every exit said about the same examples; nothing is run here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from offramp_adapters.confidence.binomial import upper_bound

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

Thresholds: TypeAlias = tuple[float, ...]

# A threshold that no score reaches.
NEVER = 2.0
# Values of each threshold on the curve around each choice: as many quantiles of its scores.
CANDIDATES = 200
# Prices of a disagreement, in items that go through all stages: the lowest lets everything leave, the highest nothing
# that has ever disagreed.
_PRICES = (1e4, 1e-2)
_PRICE_STEPS = 40
_MOST_SWEEPS = 10


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
    thresholds: Thresholds
    disagreements: int
    examples: int
    # Mean seconds per item.
    cost: float
    # Share of the items that leave at each stage, the reference last.
    shares: tuple[float, ...]

    @property
    def agreement(self) -> float:
        return 1.0 - self.disagreements / self.examples


def outcome(evidence: Evidence, thresholds: Thresholds) -> Point:
    """What these thresholds come to: every item leaves at the first exit that is sure enough."""
    exits = len(evidence.costs) - 1
    left_at = stages_left_at(evidence, thresholds)
    early = left_at < exits
    agrees = evidence.agrees[left_at[early], np.flatnonzero(early)]
    counts = np.bincount(left_at, minlength=exits + 1)
    cost = float(np.cumsum(evidence.costs)[left_at].mean())
    shares = tuple(float(share) for share in counts / evidence.examples)
    return Point(thresholds, int((~agrees).sum()), evidence.examples, cost, shares)


def stages_left_at(evidence: Evidence, thresholds: Thresholds) -> npt.NDArray[np.int64]:
    """[N]: the stage that answers each item; the reference comes after all exits."""
    # NaN is no number that reaches anything.
    sure = evidence.scores >= np.asarray(thresholds)[:, None]
    return np.where(sure.any(axis=0), sure.argmax(axis=0), len(sure))


def curve(evidence: Evidence) -> list[Point]:
    """Choices from the dearest, "all defer", to the cheapest. Of the others none is both cheaper and in better
    agreement than another.

    For each of many prices of a disagreement, thresholds are made better one at a time until none can be (coordinate
    descent; each step is exact). With one exit these are the best there are; with several a better one may be missed.
    """
    thresholds = all_defer = (NEVER,) * len(evidence.scores)
    found: set[Thresholds] = set()
    for price in np.geomspace(*_PRICES, _PRICE_STEPS) * evidence.costs.sum():
        thresholds = _descended(evidence, thresholds, float(price))
        for exit in range(len(thresholds)):
            found.update(_line(evidence, thresholds, exit))
    others = _frontier([outcome(evidence, each) for each in found - {all_defer}])
    return [outcome(evidence, all_defer), *others]


def choose(points: list[Point], agreement: float, delta: float) -> Point:
    """The cheapest point whose disagreement is below 1 - `agreement` with confidence 1 - `delta`, were it the only one
    looked at; among many it is somewhat too good, so measure it again on other examples. "All defer" always will do."""
    limit = 1.0 - agreement
    good = [point for point in points if _disagreement_bound(point, delta) <= limit]
    return min(good, key=lambda point: point.cost, default=points[0])


def examples_needed(agreement: float, delta: float) -> int:
    """How many examples `choose` has to see, if all agree, before anything may leave early."""
    return math.ceil(math.log(delta) / math.log(agreement))


def _disagreement_bound(point: Point, delta: float) -> float:
    # Nothing that leaves early cannot disagree.
    early = round((1.0 - point.shares[-1]) * point.examples)
    return 0.0 if early == 0 else upper_bound(point.disagreements, point.examples, delta)


def _descended(evidence: Evidence, thresholds: Thresholds, price: float) -> Thresholds:
    """Thresholds that no change of a single one makes better, beginning with these."""
    for _ in range(_MOST_SWEEPS):
        before = thresholds
        for exit in range(len(thresholds)):
            thresholds = _with(thresholds, exit, _best(evidence, thresholds, exit, price))
        if thresholds == before:
            break
    return thresholds


def _best(evidence: Evidence, thresholds: Thresholds, exit: int, price: float) -> float:
    """The threshold of one exit for which seconds and disagreements come cheapest, the others being as they are."""
    here, now, later = _alternatives(evidence, thresholds, exit, price)
    scores = evidence.scores[exit, here]
    order = np.argsort(-scores, kind="stable")
    # What it comes to if the surest 0, 1, 2, ... leave here.
    totals = np.concatenate([[0.0], np.cumsum((now - later)[order])])
    ranked = scores[order]
    # Equal scores leave together.
    possible = np.concatenate([[True], ranked[:-1] != ranked[1:], [True]]) if len(ranked) else np.array([True])
    count = int(np.where(possible, totals, np.inf).argmin())
    return NEVER if count == 0 else float(ranked[count - 1])


def _alternatives(
    evidence: Evidence, thresholds: Thresholds, exit: int, price: float
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Items that come to this exit with a score, and the price of each if it leaves here, and if it goes on."""
    without = stages_left_at(evidence, _with(thresholds, exit, NEVER))
    here = np.flatnonzero((without > exit) & np.isfinite(evidence.scores[exit]))
    costs = np.cumsum(evidence.costs)
    # The reference agrees with itself.
    agrees = np.vstack([evidence.agrees, np.ones(evidence.examples, np.bool_)])
    goes_on = without[here]
    now = costs[exit] + price * ~agrees[exit, here]
    later = costs[goes_on] + price * ~agrees[goes_on, here]
    return here, now, later


def _line(evidence: Evidence, thresholds: Thresholds, exit: int) -> Iterator[Thresholds]:
    """The same with other thresholds of one exit: quantiles of its scores."""
    finite = evidence.scores[exit][np.isfinite(evidence.scores[exit])]
    if len(finite):
        for value in np.unique(np.quantile(finite, np.linspace(0, 1, CANDIDATES), method="higher")):
            yield _with(thresholds, exit, float(value))


def _with(thresholds: Thresholds, exit: int, value: float) -> Thresholds:
    return (*thresholds[:exit], value, *thresholds[exit + 1 :])


def _frontier(points: list[Point]) -> list[Point]:
    """Those that nothing beats, the dearest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, point.disagreements)):
        if not best or point.disagreements < best[-1].disagreements:
            best.append(point)
    return best[::-1]
