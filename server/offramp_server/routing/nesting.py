"""Routes may run routes, but neither in a circle nor arbitrarily deep."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from offramp_adapters.routes.strategy import Definition

# A request passes through all of them, and routes that run two routes each make it twice as many requests at each step.
MAX_DEPTH = 8


def nesting_problems(definitions: Mapping[str, Definition]) -> dict[str, str]:
    """Of routes that cannot be bound because of how they run each other: a sentence for each."""
    callees = {
        name: [target.name for target in definition.targets if target.name in definitions]
        for name, definition in definitions.items()
    }
    problems = {}
    for name in _too_deep(callees):
        circle = _circle(name, callees)
        if circle:
            problems[name] = f"routes must not run in a circle: {' -> '.join(circle)}"
    # Those above a circle are not themselves too deep.
    open_ended = {name: [each for each in below if each not in problems] for name, below in callees.items()}
    for name in _too_deep(open_ended):
        problems.setdefault(
            name,
            f"it runs a route that runs a route, and so on, more than {MAX_DEPTH} deep with itself; "
            "let it run something that is nearer to the models",
        )
    return problems


def _too_deep(callees: Mapping[str, Sequence[str]]) -> list[str]:
    """Circles go on for ever, and are too deep as well."""
    depths = dict.fromkeys(callees, 1)
    for _ in range(MAX_DEPTH):
        depths = {name: 1 + max((depths[each] for each in below), default=0) for name, below in callees.items()}
    return [name for name, depth in depths.items() if depth > MAX_DEPTH]


def _circle(name: str, callees: Mapping[str, Sequence[str]]) -> list[str]:
    """The shortest way from a route back to itself; empty if there is none."""
    callers: dict[str, str] = {}
    queue = deque([name])
    while queue:
        caller = queue.popleft()
        for callee in callees[caller]:
            if callee not in callers:
                callers[callee] = caller
                queue.append(callee)
    if name not in callers:
        return []
    way = [callers[name], name]
    while way[0] != name:
        way.insert(0, callers[way[0]])
    return way
