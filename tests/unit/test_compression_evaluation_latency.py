"""Timing models side by side, on a clock that stands still unless it is moved."""

from __future__ import annotations

import pytest
from offramp_compression.evaluation.latency import Timing, time_side_by_side
from offramp_compression.evaluation.load import ProcessorShare, remark


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_each_call_has_the_seconds_that_it_takes() -> None:
    clock = Clock()
    calls = {"slow": lambda: clock.work(0.5), "fast": lambda: clock.work(0.001)}
    found = time_side_by_side(calls, clock=clock)
    assert found["slow"].value == pytest.approx(0.5)
    assert found["fast"].value == pytest.approx(0.001)


def test_rounds_are_interleaved_so_that_a_busy_moment_hits_every_model() -> None:
    clock = Clock()
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        clock.work(1.0)

    time_side_by_side({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=3, clock=clock)
    # Two calls of each to learn how long one takes; then the rounds.
    assert "".join(order) == "aabb" + "ab" * 3


def test_one_slow_round_does_not_move_the_median() -> None:
    clock = Clock()
    durations = iter([1.0, 1.0, 1.0, 60.0, 1.0])
    found = time_side_by_side({"a": lambda: clock.work(next(durations))}, rounds=3, clock=clock)
    assert found["a"].value == 1.0


def test_a_short_call_is_repeated_within_a_round() -> None:
    clock = Clock()
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.work(0.25)

    time_side_by_side({"a": call}, rounds=2, minimum=1.0, clock=clock)
    assert calls == 2 + 2 * 4


def test_items_a_second_count_the_whole_batch() -> None:
    clock = Clock()
    found = time_side_by_side({"a": lambda: clock.work(0.5)}, clock=clock)
    assert Timing(16, found["a"]).items_per_second == pytest.approx(32)


def test_times_that_were_measured_on_a_busy_machine_are_called_so() -> None:
    elapsed, worked = Clock(), Clock()
    with ProcessorShare(elapsed, worked) as share:
        elapsed.work(10.0)
        worked.work(6.0)
    assert share.value == pytest.approx(0.6)
    assert "had a processor for 60% of the time only" in remark(share.value)


def test_times_of_an_idle_machine_go_without_a_remark() -> None:
    elapsed, worked = Clock(), Clock()
    with ProcessorShare(elapsed, worked) as share:
        elapsed.work(10.0)
        worked.work(9.8)
    assert remark(share.value) == ""
    with ProcessorShare(elapsed, worked) as nothing:
        pass
    assert remark(nothing.value) == ""
