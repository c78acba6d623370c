"""What a route does at a level of load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from offramp_adapters.audits.subject import NOT_IN_ANSWERS
from offramp_adapters.routes.strategy import Level, RouteInvalid


@dataclass(frozen=True, slots=True)
class LoadRule:
    """`[load.LEVEL]` of a route. The defaults change nothing."""

    # Of an early-exit route's exits, in order; None: their own. What the operator set live does not apply then.
    thresholds: tuple[float, ...] | None = None
    # Factor on the rate of audits.
    audits: float = field(default=1.0, metadata=NOT_IN_ANSWERS)
    # Whether shadow arms get their copies.
    shadows: bool = field(default=True, metadata=NOT_IN_ANSWERS)
    # Share of the requests that are refused, by a coin that knows nothing of them.
    shed: float = 0.0


def check_thresholds(rules: Mapping[Level, LoadRule], own: Sequence[float]) -> None:
    """Raises RouteInvalid unless the thresholds of every level fit the exits, `own` being theirs at the normal level:
    one for each, and none lower at a lower level. So those of the outermost levels are the bounds of the others, and
    of what an operator may set. An exit whose own is above 1 is closed at every level."""
    given = {level: rule.thresholds for level, rule in rules.items() if rule.thresholds is not None}
    for level, thresholds in given.items():
        if len(thresholds) != len(own):
            raise RouteInvalid(
                f"load.{_name(level)}.thresholds: expected {len(own)}, one for each exit, got {len(thresholds)}"
            )
    steps = sorted({Level.NORMAL: tuple(own), **given}.items())
    for (calmer, high), (busier, low) in pairwise(steps):
        for place, (above, below) in enumerate(zip(high, low, strict=True)):
            if below > above and own[place] <= 1:
                raise RouteInvalid(
                    f"exit {place + 1}: the threshold {below:g} of {_whose(busier)} is above {above:g} of "
                    f"{_whose(calmer)}; under load a route exits earlier, so expected at most that"
                )


def _whose(level: Level) -> str:
    return "the stage itself" if level is Level.NORMAL else f"load.{_name(level)}"


def _name(level: Level) -> str:
    return level.name.lower()
