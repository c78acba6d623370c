"""When the client tries again, how long it waits, and when it gives up; on a clock that stands still by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from offramp_client._plans import Done, Outcome, Pause, Plan, Planner, Send, proceed
from offramp_client.errors import DeadlineExceeded, OfframpError, Unavailable
from offramp_client.options import CLIENT_DEFAULT
from offramp_client.retry import RetryPolicy
from open_inference import grpc_predict_v2_pb2 as pb

READY = pb.ServerReadyResponse(ready=True).SerializeToString()
NOT_READY = pb.ServerReadyResponse().SerializeToString()
METADATA = pb.ServerMetadataResponse(name="s").SerializeToString()


class Wire:
    """Carries out plans against a script of outcomes. An attempt takes `cost` seconds of the fake clock."""

    def __init__(self, *script: Outcome, cost: float = 0.0) -> None:
        self.script = list(script)
        self.cost = cost
        self.now = 1000.0
        self.pauses: list[float] = []
        self.timeouts: list[float | None] = []

    def planner(
        self, retries: RetryPolicy | None = None, *, timeout: float | None = 10.0, chance: float = 1.0
    ) -> Planner:
        return Planner(timeout, retries or RetryPolicy(), lambda: self.now, lambda: chance)

    def carry_out(self, plan: Plan[Any]) -> Any:
        step = proceed(plan, None)
        while not isinstance(step, Done):
            step = proceed(plan, self._pause(step) if isinstance(step, Pause) else self._send(step))
        return step.result

    def _pause(self, step: Pause) -> Outcome:
        self.pauses.append(step.seconds)
        self.now += step.seconds
        return None

    def _send(self, step: Send) -> Outcome:
        self.timeouts.append(step.timeout)
        self.now += self.cost
        return self.script.pop(0)


def unavailable(count: int, **hints: Any) -> list[OfframpError]:
    return [Unavailable(f"draining {i}", **hints) for i in range(count)]


def test_pauses_double_up_to_their_bound() -> None:
    wire = Wire(*unavailable(6), METADATA)
    policy = RetryPolicy(max_attempts=7, initial_backoff=0.1, max_backoff=1.0, multiplier=2.0)

    wire.carry_out(wire.planner(policy).server_metadata(CLIENT_DEFAULT))

    assert wire.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
def test_jitter_takes_any_part_of_the_pause(chance: float) -> None:
    wire = Wire(*unavailable(2), METADATA)

    wire.carry_out(wire.planner(RetryPolicy(initial_backoff=1.0), chance=chance).server_metadata(CLIENT_DEFAULT))

    assert wire.pauses == pytest.approx([1.0 * chance, 2.0 * chance])


def test_the_deadline_spans_all_attempts() -> None:
    wire = Wire(*unavailable(2), METADATA, cost=1.0)

    wire.carry_out(wire.planner(RetryPolicy(initial_backoff=0.5)).server_metadata(CLIENT_DEFAULT))

    assert wire.timeouts == pytest.approx([10.0, 8.5, 6.5])


def test_no_attempt_is_waited_for_that_the_deadline_would_not_see() -> None:
    wire = Wire(*unavailable(3), cost=1.0)
    policy = RetryPolicy(max_attempts=10, initial_backoff=2.0, max_backoff=2.0)

    with pytest.raises(Unavailable, match="draining 1"):
        wire.carry_out(wire.planner(policy, timeout=5.0).server_metadata(CLIENT_DEFAULT))

    assert wire.pauses == [2.0]
    assert wire.now <= 1005.0


def test_without_a_deadline_only_the_number_of_attempts_counts() -> None:
    wire = Wire(*unavailable(5), cost=1e6)

    with pytest.raises(Unavailable, match="draining 3"):
        wire.carry_out(wire.planner(timeout=None).server_metadata(CLIENT_DEFAULT))

    assert wire.timeouts == [None] * 4


def test_a_server_that_names_its_pause_is_obeyed() -> None:
    wire = Wire(*unavailable(1, retry_after=3.0), METADATA)
    wire.carry_out(wire.planner().server_metadata(CLIENT_DEFAULT))
    assert wire.pauses == [3.0]


@pytest.mark.parametrize("timeout", [10.0, None])
def test_a_server_that_asks_not_to_be_tried_again_is_obeyed(timeout: float | None) -> None:
    wire = Wire(*unavailable(1, retry_after=float("inf")))
    with pytest.raises(Unavailable):
        wire.carry_out(wire.planner(timeout=timeout).server_metadata(CLIENT_DEFAULT))


def test_a_timeout_of_the_call_replaces_the_clients() -> None:
    wire = Wire(METADATA, METADATA)
    wire.carry_out(wire.planner().server_metadata(3.0))
    wire.carry_out(wire.planner().server_metadata(None))
    assert wire.timeouts == [3.0, None]


@pytest.mark.parametrize(
    "probe",
    [
        lambda planner: planner.is_live(CLIENT_DEFAULT),
        lambda planner: planner.is_ready(CLIENT_DEFAULT),
        lambda planner: planner.is_model_ready("m", "", CLIENT_DEFAULT),
    ],
)
def test_a_probe_asks_once(probe: Callable[[Planner], Plan[bool]]) -> None:
    wire = Wire(*unavailable(1))
    assert wire.carry_out(probe(wire.planner())) is False
    assert wire.pauses == []


def test_waiting_asks_ever_less_often_but_at_least_every_half_second() -> None:
    wire = Wire(*unavailable(3), NOT_READY, DeadlineExceeded("hangs"), NOT_READY, READY)

    wire.carry_out(wire.planner().wait_until_ready(None, "", 60.0))

    assert wire.pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_waiting_for_very_long_does_not_overflow_the_back_off() -> None:
    wire = Wire(*[NOT_READY] * 2000, READY)
    wire.carry_out(wire.planner().wait_until_ready(None, "", None))
    assert max(wire.pauses) == 0.5


def test_waiting_ends_with_the_last_reason() -> None:
    wire = Wire(*unavailable(1), *[NOT_READY] * 10)

    with pytest.raises(DeadlineExceeded, match="not ready after 1 s: the server answers and says that it is not"):
        wire.carry_out(wire.planner().wait_until_ready(None, "", 1.0))


def test_waiting_ends_in_time_even_if_every_question_hangs() -> None:
    hanging = [DeadlineExceeded("hangs")] * 10
    wire = Wire(*hanging, cost=2.0)

    with pytest.raises(DeadlineExceeded, match="not ready after 7 s: hangs"):
        wire.carry_out(wire.planner(timeout=2.0).wait_until_ready(None, "", 7.0))

    assert wire.timeouts == pytest.approx([2.0, 2.0, 2.0, 0.65])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_attempts": 0}, "at least 1, got 0"),
        ({"initial_backoff": 3.0}, "got 3 and 2"),
        ({"initial_backoff": -1.0}, "got -1 and 2"),
        ({"max_backoff": float("inf")}, "got 0.05 and inf"),
        ({"multiplier": 0.5}, "at least 1, got 0.5"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RetryPolicy(**options)
