"""What a request asks of an early-exit route by its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp_common.text import quoted

from offramp_adapters.routes.exit_stages import BoundStage
from offramp_adapters.routes.parameters import MAX_EXIT, MIN_CONFIDENCE, ROUTE, check_route, number
from offramp_adapters.routes.plan import Parameters, ParameterValue, RouteRefused, Target

# Routes below must not take them for their own.
HEEDED = frozenset({ROUTE, MAX_EXIT, MIN_CONFIDENCE})


@dataclass(frozen=True, slots=True)
class Wish:
    """Which stages a request may run, and how sure its answer should be."""

    first: int
    last: int
    min_confidence: float = 0.0
    # It chose its path by itself, so that it says nothing of how the route chooses.
    chosen: bool = False


def read_wish(parameters: Parameters, kind: str, stages: Sequence[BoundStage]) -> Wish:
    """Raises RouteRefused."""
    if not parameters or HEEDED.isdisjoint(parameters):
        return Wish(0, len(stages) - 1)
    first, last = _range(parameters, kind, stages)
    deepest = _deepest(parameters.get(MAX_EXIT), stages)
    if deepest < first:
        raise RouteRefused(
            f'parameter "{MAX_EXIT}": stage "{stages[deepest].name}" comes before the model that "{ROUTE}" asks for; '
            "expected one of the two"
        )
    return Wish(first, min(last, deepest), number(parameters, MIN_CONFIDENCE, 0, 1) or 0.0, chosen=True)


def _range(parameters: Parameters, kind: str, stages: Sequence[BoundStage]) -> tuple[int, int]:
    """First and last stage."""
    whole = {stage.target: at for at, stage in enumerate(stages) if stage.start == at and not stage.hands_on}
    wanted: Target | None = check_route(parameters, kind, tuple(whole))
    return (0, len(stages) - 1) if wanted is None else (whole[wanted], whole[wanted])


def _deepest(given: ParameterValue | None, stages: Sequence[BoundStage]) -> int:
    if given is None:
        return len(stages) - 1
    names = [stage.name for stage in stages]
    if isinstance(given, str) and given in names:
        return names.index(given)
    numbers = [str(number) for number in range(1, len(stages) + 1)]
    # Not the other way round: what comes may have more digits than Python reads.
    if not isinstance(given, bool) and str(given) in numbers:
        return numbers.index(str(given))
    shown = quoted(given) if isinstance(given, str) else repr(given)
    raise RouteRefused(
        f'parameter "{MAX_EXIT}": expected the name of a stage ({", ".join(map(quoted, names))}) '
        f"or its number from 1 to {len(stages)}, got {shown}"
    )
