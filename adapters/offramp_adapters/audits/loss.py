"""How often a route's answers differ from its reference's: sums over observations, and an interval for the rate.

An item's loss is 1 / probability if it was answered early, audited, and found to differ; else it is 0. Its mean is the
rate of disagreement (Horvitz and Thompson, 1952): what was not audited is made up for by what was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from offramp_adapters.audits.observation import ExitObservation
from offramp_adapters.confidence.binomial import lower_bound, upper_bound

# "": nothing is known, and nothing was to be. "deferred": the answer is the reference's own.
Outcome: TypeAlias = Literal["", "deferred", "agreed", "disagreed", "lost"]


def outcome(seen: ExitObservation) -> Outcome:
    """What came of the answer that was served."""
    if not seen.audited:
        return ""
    if seen.lost:
        return "lost"
    if seen.exit == seen.stages - 1:
        return "deferred"
    return "agreed" if seen.agreed[seen.exit] else "disagreed"


@dataclass(slots=True)
class ExitTotals:
    """Of the items that one exit answered."""

    items: int = 0
    # Came while nothing was audited: nothing follows about those that exited, and so nothing from the deferred ones.
    unseen: int = 0
    # For which the reference ran, or was to.
    audited: int = 0
    lost: int = 0
    disagreed: int = 0
    # Sums of 1 / probability, and of its square, over those that disagreed; and over those that were lost, which may
    # have disagreed.
    disagreed_weight: float = 0.0
    disagreed_square: float = 0.0
    lost_weight: float = 0.0
    lost_square: float = 0.0
    # The largest 1 / probability of all that were audited or might have been: the largest loss that was possible.
    largest_weight: float = 0.0

    def count(self, seen: ExitObservation) -> None:
        self.items += 1
        if seen.rate <= 0:
            self.unseen += 1
            return
        weight = 1 / seen.probability
        self.largest_weight = max(self.largest_weight, weight)
        self.audited += seen.audited
        found = outcome(seen)
        if found == "lost":
            self.lost += 1
            self.lost_weight += weight
            self.lost_square += weight**2
        elif found == "disagreed":
            self.disagreed += 1
            self.disagreed_weight += weight
            self.disagreed_square += weight**2

    @property
    def seen(self) -> int:
        """Items that were audited, or would have been if they had exited and the coin had said so."""
        return self.items - self.unseen

    def add(self, other: ExitTotals) -> None:
        largest = max(self.largest_weight, other.largest_weight)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.largest_weight = largest


def rate(totals: ExitTotals) -> float | None:
    """The estimated share of items whose answer differs from the reference's, among those that came while there were
    audits; what became of lost ones is left out. None: there are no such items."""
    return totals.disagreed_weight / totals.seen if totals.seen else None


def interval(totals: ExitTotals, delta: float = 0.05) -> tuple[float, float]:
    """Bounds that the rate keeps with probability 1 - `delta`, if `delta` and the number of items were chosen before
    looking. Lost audits count as agreed for the lower bound and as disagreed for the upper one.

    With one probability for all audits the number of disagreements is binomial (Clopper and Pearson, 1934); otherwise
    the bounds are empirical Bernstein's (Maurer and Pontil, 2009, theorem 4).
    """
    if not totals.seen or not totals.largest_weight:
        return 0.0, 1.0
    weight = totals.largest_weight
    found, bad = totals.disagreed, totals.disagreed + totals.lost
    if _close(totals.disagreed_weight, found * weight) and _close(totals.lost_weight, totals.lost * weight):
        low = lower_bound(found, totals.seen, delta / 2) * weight
        high = upper_bound(bad, totals.seen, delta / 2) * weight
    else:
        low = totals.disagreed_weight / totals.seen - _bernstein(totals.disagreed_weight, totals.disagreed_square,
                                                                  totals.seen, weight, delta / 2)  # fmt: skip
        sums = totals.disagreed_weight + totals.lost_weight, totals.disagreed_square + totals.lost_square
        high = sums[0] / totals.seen + _bernstein(*sums, totals.seen, weight, delta / 2)
    return max(0.0, low), min(1.0, high)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9)


def _bernstein(total: float, square: float, items: int, bound: float, delta: float) -> float:
    if items < 2:
        return bound
    variance = max(0.0, (square - total**2 / items) / (items - 1))
    log = math.log(2 / delta)
    return math.sqrt(2 * variance * log / items) + 7 * bound * log / (3 * (items - 1))
