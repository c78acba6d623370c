"""What a route does at a level of load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadRule:
    """`[load.LEVEL]` of a route. The defaults change nothing."""

    # Of an early-exit route's exits, in order; None: their own. What the operator set live does not apply then.
    thresholds: tuple[float, ...] | None = None
    # Factor on the rate of audits.
    audits: float = 1.0
    # Whether shadow arms get their copies.
    shadows: bool = True
    # Share of the requests that are refused, by a coin that knows nothing of them.
    shed: float = 0.0
