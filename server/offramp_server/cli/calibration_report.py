"""What `offramp calibrate` prints."""

from __future__ import annotations

from collections.abc import Sequence

from offramp_adapters.confidence.binomial import lower_bound
from offramp_adapters.confidence.thresholds import Point
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_common.tables import table

from offramp_server.cli.calibration import Calibration, Wanted

# Agreements that the table of the curve shows what they cost.
SHOWN = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def report(route: EarlyExitRoute, found: Calibration, wanted: Wanted) -> str:
    return "\n".join((_stages(route, found), "", *_unseen(route, found, wanted), "", *_curve(route, found)))


def _stages(route: EarlyExitRoute, found: Calibration) -> str:
    thresholds = [*(f"{threshold:g}" for threshold in found.chosen.thresholds), ""]
    rows = [
        (stage.label, threshold, f"{temperature:g}", f"{share:.1%}", f"{accuracy:.2%}")
        for stage, threshold, temperature, share, accuracy in zip(
            route.stages, thresholds, found.temperatures, found.unseen.shares, found.stage_accuracies, strict=True
        )
    ]
    return table(("stage", "threshold", "temperature", "answers", "accuracy alone"), rows, right=range(1, 5))


def _unseen(route: EarlyExitRoute, found: Calibration, wanted: Wanted) -> Sequence[str]:
    unseen = found.unseen
    agreed = unseen.examples - unseen.disagreements
    low = lower_bound(agreed, unseen.examples, wanted.delta)
    return (
        f"chosen on {found.chosen.examples} examples; on {unseen.examples} others:",
        f"agreement with {route.stages[-1].label}: {unseen.agreement:.2%}, at least {low:.2%} with confidence "
        f"{1 - wanted.delta:g} (wanted: {wanted.agreement:.2%})",
        f"accuracy: {found.accuracy:.2%}",
        f"cost: {unseen.cost * 1e3:.3g} ms an item, {unseen.cost / found.reference_cost:.3f} of the last stage alone",
    )


def _curve(route: EarlyExitRoute, found: Calibration) -> Sequence[str]:
    """What it would be with other wishes."""
    rows = []
    for wish in SHOWN:
        there = [unseen for seen, unseen in _by_cost(found) if seen.agreement >= wish]
        if there:
            rows.append(_row(wish, there[0], found.reference_cost))
    header = ("chosen for", "agreement", "cost", *(stage.label for stage in route.stages))
    words = "the cheapest choices with an agreement of so much where they were made, and what they are on the others:"
    return words, table(header, rows, right=range(1, len(header)))


def _by_cost(found: Calibration) -> Sequence[tuple[Point, Point]]:
    return sorted(found.curve, key=lambda both: both[0].cost)


def _row(wish: float, point: Point, reference_cost: float) -> tuple[str, ...]:
    shares = (f"{share:.0%}" for share in point.shares)
    return f"{wish:.1%}", f"{point.agreement:.2%}", f"{point.cost / reference_cost:.3f}", *shares
