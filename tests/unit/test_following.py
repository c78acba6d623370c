"""Plans are carried out to their end, and what they refuse or give up is told to callers in the server's own errors."""

from __future__ import annotations

import pytest
from offramp_adapters.routes.plan import (
    Answer,
    Outcomes,
    Plan,
    RouteRefused,
    Run,
    Shed,
    StateLost,
    Target,
    Together,
    alone,
)
from offramp_server.errors import InvalidRequest, ModelFailed, Overloaded, Unavailable
from offramp_server.routing.following import follow


async def answers(step: Together) -> Outcomes:
    return tuple(Answer((), models=(run.target.name,)) for run in step.runs)


def failing(error: Exception) -> Plan[Answer]:
    yield from alone(Run(Target("a")))
    raise error


async def test_a_plan_is_sent_what_its_steps_come_to() -> None:
    def plan() -> Plan[tuple[str, ...]]:
        first = yield from alone(Run(Target("a")))
        second, third = yield Together((Run(Target("b")), Run(Target("c"))))
        assert second is not None
        assert third is not None
        return first.models + second.models + third.models

    assert await follow(plan(), answers) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RouteRefused("no such exit"), InvalidRequest),
        (Shed("not now"), Overloaded),
        # A route above has hidden state of its own, and must not take this for its.
        (StateLost("gone"), Unavailable),
        (ModelFailed("broken"), ModelFailed),
    ],
)
async def test_how_a_plan_ends_is_told_in_the_server_s_errors(error: Exception, told: type[Exception]) -> None:
    with pytest.raises(told, match=str(error)):
        await follow(failing(error), answers)


async def test_an_error_of_a_step_is_thrown_into_the_plan_which_may_go_on() -> None:
    def plan() -> Plan[str]:
        try:
            yield from alone(Run(Target("a")))
        except StateLost as error:
            answer = yield from alone(Run(Target("b")))
            return f"{error}, then {answer.models[0]}"
        return "not thrown"

    async def perform(step: Together) -> Outcomes:
        if step.runs[0].target.name == "a":
            raise StateLost("gone")
        return await answers(step)

    assert await follow(plan(), perform) == "gone, then b"
