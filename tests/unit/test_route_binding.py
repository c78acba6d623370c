"""Routes over routes: what they are judged as, and how deep they may be."""

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
from offramp_server.routing.binding import BoundModel, BoundRoute, Broken, bind_all

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


def chain(length: int) -> dict[str, Definition]:
    """`r1` runs a model, and every other route the one before it."""
    routes = {f"r{number}": SingleRoute(Target(f"r{number - 1}")) for number in range(2, length + 1)}
    return {**dict(reversed(routes.items())), "r1": SingleRoute(Target("student"))}


def test_eight_routes_may_run_each_other_and_more_may_not_however_many_there_are() -> None:
    bound = bind_all(chain(2000), model)
    assert [name for name, each in bound.items() if isinstance(each, BoundRoute)] == [f"r{n}" for n in range(8, 0, -1)]
    for name in ("r9", "r2000"):
        refused = bound[name]
        assert isinstance(refused, Broken)
        assert "more than 8 deep" in refused.problem
        assert "nearer to the models" in refused.problem


def test_a_route_above_a_circle_says_which_circle() -> None:
    routes = {name: SingleRoute(Target(below)) for name, below in (("top", "a"), ("a", "b"), ("b", "c"), ("c", "a"))}
    refused = bind_all(routes, model)["top"]
    assert refused == Broken('route "a": routes must not run in a circle: a -> b -> c -> a')


def test_a_route_that_many_others_run_is_bound_once() -> None:
    asked: list[Target] = []

    def counted(target: Target) -> BoundModel:
        asked.append(target)
        return model(target)

    routes: dict[str, Definition] = {"r8": SingleRoute(Target("student"))}
    for number in range(7, 0, -1):
        below = (Arm("a", Target(f"r{number + 1}"), 1.0), Arm("b", Target(f"r{number + 1}"), 1.0))
        routes[f"r{number}"] = SplitRoute("salt", below)
    bound = bind_all(dict(reversed(routes.items())), counted)
    assert all(isinstance(each, BoundRoute) for each in bound.values())
    assert asked == [Target("student")]


def test_a_deep_pile_of_routes_that_run_two_routes_each_is_refused_without_following_every_way() -> None:
    routes: dict[str, Definition] = {}
    for number in range(60):
        left, right = (Target(f"{side}{number + 1}") for side in ("left", "right"))
        for side in ("left", "right"):
            routes[f"{side}{number}"] = SplitRoute("salt", (Arm("a", left, 1.0), Arm("b", right, 1.0)))
    assert isinstance(bind_all(routes, model)["left0"], Broken)
