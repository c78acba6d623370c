"""Which arm of an experiment a unit belongs to: a function of the salt, the weights and the unit, and of nothing else.

Rendezvous hashing (Thaler & Ravishankar, "Using name-based mappings to increase hit rates", 1998) with weights: each
arm draws -ln(u) / weight for the unit, with u from a hash, and the smallest draw wins. The draws are independent
exponential variables, so an arm wins with the share of its weight; and whichever weights change, two arms whose own
have kept their ratio exchange no units. Therefore

- an arm whose weight grows takes units from the others, which move nowhere else, and one that shrinks gives them away;
- with two arms exactly the changed share moves: 50/50 to 60/40 moves 10 % of the units;
- an arm that comes takes its share from all others in proportion, and one that goes leaves it to them likewise.

There is no state: every replica, and every restart, gives the same unit the same arm. A change of a share d of the
traffic moves at most 2d / (1 + d) of the units (Moulton & Jiang, "Maximally consistent sampling and the Jaccard index
of probability distributions", 2018), and without state no scheme has a better bound (Bavarian et al., "Optimality of
correlated sampling strategies", 2020). docs/routes.md has the hash byte by byte, with test vectors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

# With these a double holds the middle of every interval exactly.
_BITS = 52


def assign(salt: str, weights: Mapping[str, float], unit: str | int) -> str:
    """The arm of this unit, one of those with a weight above 0; there has to be one. An int is the same unit as its
    decimal digits. Arms' names must not hold NUL, or two pairs of a name and a unit may be one."""
    draws = ((_draw(salt, arm, unit) / weight, arm) for arm, weight in weights.items() if weight > 0)
    return min(draws)[1]


def choose(weights: Mapping[str, float], coin: float) -> str:
    """An arm for a request without a unit, `coin` being uniform in [0, 1). Some weight has to be above 0."""
    rest = coin * sum(weights.values())
    arms = [arm for arm, weight in weights.items() if weight > 0]
    for arm in arms[:-1]:
        rest -= weights[arm]
        if rest < 0:
            return arm
    return arms[-1]


def point(salt: str, arm: str, unit: str | int) -> float:
    """Uniform in (0, 1): from the first 52 bits of SHA-256 over the three in UTF-8, with a NUL between them."""
    digest = hashlib.sha256(f"{salt}\0{arm}\0{unit}".encode()).digest()
    bits = int.from_bytes(digest[:8], "big") >> (64 - _BITS)
    # The middle of an interval: 0 has no logarithm, and that of 1 would win against any weight.
    return (bits + 0.5) / (1 << _BITS)


def _draw(salt: str, arm: str, unit: str | int) -> float:
    return -math.log(point(salt, arm, unit))
