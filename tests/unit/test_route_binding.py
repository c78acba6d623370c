"""What a route over routes is judged as."""

from __future__ import annotations

from dataclasses import replace

import pytest
from offramp_adapters.control.rules import LoadRule
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.single import SingleRoute
from offramp_adapters.routes.split import Arm, Shadow, SplitRoute
from offramp_adapters.routes.strategy import Definition, Endpoint, Level, TensorFacts
from offramp_server.routing.binding import BoundModel, BoundRoute, bind_all

EXITS = EarlyExitRoute((Stage(Target("student"), 0.8), Stage(Target("teacher"))))
SPLIT = SplitRoute("salt", (Arm("a", Target("student"), 1.0), Arm("b", Target("teacher"), 1.0)), (
    Shadow("s", Target("other")),
))  # fmt: skip


def model(target: Target) -> BoundModel:
    inputs = (TensorFacts("x", "FP32", (4,)),)
    outputs = (TensorFacts("logits", "FP32", (10,)),)
    return BoundModel(Endpoint(inputs, outputs, 8, fingerprint=target.name))


def subjects(below: Definition) -> tuple[str, str]:
    """Of the route, and of one over it."""
    bound = bind_all({"below": below, "above": SingleRoute(Target("below"))}, model)
    routes = [route for route in (bound["below"], bound["above"]) if isinstance(route, BoundRoute)]
    below_it, above = routes
    return below_it.subject, above.subject


def with_threshold(threshold: float) -> EarlyExitRoute:
    return replace(EXITS, stages=(replace(EXITS.stages[0], threshold=threshold), EXITS.stages[1]))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (EXITS, replace(EXITS, audit_rate=0.2)),
        (EXITS, replace(EXITS, seed=5)),
        (EXITS, replace(EXITS, stages=(replace(EXITS.stages[0], name="first"), EXITS.stages[1]))),
        (replace(EXITS, load={Level.BUSY: LoadRule()}), replace(EXITS, load={Level.BUSY: LoadRule(audits=0.5)})),
        (SPLIT, replace(SPLIT, shadows=(replace(SPLIT.shadows[0], share=0.1),))),
    ],
)
def test_how_much_is_audited_below_asks_for_no_new_evidence_above(before: Definition, after: Definition) -> None:
    assert subjects(before) == subjects(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (EXITS, with_threshold(0.9)),
        (EXITS, replace(EXITS, load={Level.BUSY: LoadRule(thresholds=(0.5,))})),
        (SPLIT, replace(SPLIT, arms=(replace(SPLIT.arms[0], weight=3.0), SPLIT.arms[1]))),
    ],
)
def test_what_changes_answers_below_asks_for_new_evidence_above_and_not_of_the_route_itself(
    before: Definition, after: Definition
) -> None:
    (own, above), (own_after, above_after) = subjects(before), subjects(after)
    assert own == own_after
    assert above != above_after
