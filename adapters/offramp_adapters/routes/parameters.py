"""Request parameters that choose a path, and response parameters that say which one it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from offramp_common.text import quoted

from offramp_adapters.routes.plan import Parameters, RouteRefused, Target

# Of requests.
ROUTE = "offramp_route"
UNIT = "offramp_unit"
MAX_EXIT = "offramp_max_exit"
MIN_CONFIDENCE = "offramp_min_confidence"
# Of answers; for several items there is one value for each, separated by commas.
EXIT = "offramp_exit"
CONFIDENCE = "offramp_confidence"
ARM = "offramp_arm"
# How the request came to its arm: "unit", "coin", or "request", which asked for it and is no part of the experiment.
ASSIGNED = "offramp_assigned"
EPOCH = "offramp_epoch"
# Of an ensemble with a stack: "stack", or "mean" where a member that it needs was missing.
COMBINE = "offramp_combine"
# Everything that the answer is made of, as "name:version", separated by commas.
MODELS = "offramp_models"

_MODEL = "model:"


def check_route(parameters: Parameters, kind: str, targets: Sequence[Target]) -> Target | None:
    """The one of `targets` that the request wants to run instead of the route's own way; None: that way.

    Raises RouteRefused for anything else than the route's kind and "model:NAME" of a target.
    """
    wanted = parameters.get(ROUTE, "")
    if wanted in ("", kind):
        return None
    for target in targets:
        if wanted == f"{_MODEL}{target.name}":
            return target
    names = dict.fromkeys(target.name for target in targets)
    choices = " or ".join([f'"{kind}"', *(f'"{_MODEL}{name}"' for name in names)])
    shown = quoted(wanted) if isinstance(wanted, str) else repr(wanted)
    raise RouteRefused(f'parameter "{ROUTE}": expected {choices}, got {shown}')


def per_item(values: Iterable[object]) -> str:
    """One value for each item of the request; floating-point numbers with four significant digits."""
    return ",".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def number(parameters: Parameters, key: str, low: float, high: float) -> float | None:
    """A number from `low` to `high`; a string that reads as one counts. None: not given. Raises RouteRefused."""
    given = parameters.get(key)
    if given is None:
        return None
    try:
        value = float("nan") if isinstance(given, bool) else float(given)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        shown = quoted(given) if isinstance(given, str) else repr(given)
        raise RouteRefused(f'parameter "{key}": expected a number from {low:g} to {high:g}, got {shown}')
    return value
