"""Levels of load: quick up, slow down, and never to and fro. Time is the tests' own.

The closed loop is a queue with one server whose work for a request depends on the level at its arrival, as that of a
route does: the level decides the load that it is made from.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from offramp_adapters.control.load import LoadController
from offramp_adapters.control.rules import LoadRule, check_thresholds
from offramp_adapters.routes.strategy import Level, RouteInvalid

TICK = 0.01
# How long a request of the closed loop may wait, and how long it is computed at the normal level, in seconds.
TARGET, SERVICE = 0.1, 0.01


@dataclass
class Watched:
    """A controller, and every change of its level."""

    controller: LoadController = field(default_factory=LoadController)
    now: float = 0.0
    changes: list[tuple[float, Level]] = field(default_factory=list)

    def see(self, waiting: float, busy: float) -> Level:
        before = self.controller.level
        self.now += TICK
        level = self.controller.observe(self.now, waiting, busy)
        if level is not before:
            self.changes.append((self.now, level))
        return level

    def hold(self, seconds: float, waiting: float, busy: float) -> Level:
        for _ in range(round(seconds / TICK)):
            self.see(waiting, busy)
        return self.controller.level

    @property
    def levels(self) -> list[Level]:
        return [level for _, level in self.changes]


# Steps


def test_a_quiet_server_becomes_idle_and_stays_so() -> None:
    watched = Watched()
    assert watched.hold(60, 0.0, 0.05) is Level.IDLE
    assert watched.levels == [Level.IDLE]


def test_a_server_that_works_without_anybody_waiting_is_not_idle() -> None:
    assert Watched().hold(60, 0.0, 0.6) is Level.NORMAL


def test_an_idle_server_that_gets_to_work_uses_its_capacity_no_more_for_better_answers() -> None:
    watched = Watched()
    watched.hold(5, 0.0, 0.0)
    assert watched.hold(10, 0.0, 0.95) is Level.NORMAL


def test_long_waits_are_met_at_once() -> None:
    watched = Watched()
    watched.hold(10, 0.0, 0.5)
    start = watched.now
    watched.hold(1, 20.0, 1.0)
    assert watched.levels[-1] is Level.OVERLOADED
    assert watched.changes[-1][0] - start <= 0.2


def test_levels_are_left_downwards_one_by_one_and_only_after_it_was_calm() -> None:
    watched = Watched()
    watched.hold(1, 5.0, 1.0)
    start = watched.now
    watched.hold(10, 0.0, 0.1)
    assert watched.levels == [Level.OVERLOADED, Level.BUSY, Level.NORMAL, Level.IDLE]
    times = [start, *(at for at, level in watched.changes if level < Level.OVERLOADED)]
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))


def test_between_the_two_bounds_of_a_level_nothing_changes() -> None:
    watched = Watched()
    watched.hold(10, 0.6, 0.9)
    assert watched.hold(600, 0.3, 0.1) is Level.BUSY
    assert watched.levels == [Level.BUSY]


def test_a_short_spike_is_no_reason() -> None:
    watched = Watched()
    for _ in range(100):
        watched.hold(0.99, 0.1, 0.5)
        watched.see(2.0, 0.5)
    assert watched.changes == []


def test_noise_around_a_bound_changes_the_level_once() -> None:
    """Exponentially distributed, as waiting times are, with a mean just where a level begins."""
    toss = random.Random(7)
    watched = Watched()
    for _ in range(60_000):
        watched.see(toss.expovariate(1 / 0.5), 0.9)
    assert watched.levels == [Level.BUSY]


def test_calls_may_be_irregular_and_far_apart() -> None:
    controller = LoadController()
    controller.observe(0.0, 5.0, 1.0)
    controller.observe(0.01, 5.0, 1.0)
    assert controller.observe(3600.0, 0.0, 0.0) is Level.OVERLOADED
    assert controller.observe(3602.0, 0.0, 0.0) is Level.BUSY


# The closed loop


def queue(arrivals: Callable[[float], float], cost: Mapping[Level, float], seconds: float) -> tuple[Watched, float]:
    """What the controller makes of that many arrivals a second, and the longest wait in the last quarter."""
    toss = random.Random(11)
    watched = Watched()
    waiting: deque[tuple[float, float]] = deque()
    now = free = backlog = arrival = longest = 0.0
    level = watched.controller.level
    while now < seconds:
        end = now + TICK
        while arrival < end:
            waiting.append((arrival, cost[level]))
            backlog += cost[level]
            arrival += toss.expovariate(arrivals(arrival))
        while waiting and (start := max(free, waiting[0][0], now)) < end:
            came, work = waiting.popleft()
            backlog -= work
            free = start + work
            longest = max(longest, start - came) if now > 0.75 * seconds else 0.0
        oldest = end - waiting[0][0] if waiting else 0.0
        level = watched.see(max(oldest, backlog) / TARGET, min(1.0, max(0.0, free - now) / TICK))
        now = end
    return watched, longest


def costs(idle: float, busy: float, overloaded: float) -> Mapping[Level, float]:
    """Seconds for a request, by factors on those of the normal level."""
    factors = {Level.IDLE: idle, Level.NORMAL: 1.0, Level.BUSY: busy, Level.OVERLOADED: overloaded}
    return {level: SERVICE * factor for level, factor in factors.items()}


STEEPNESS = [costs(1.25, 0.8, 0.6), costs(2, 0.5, 0.25), costs(2, 0.2, 0.09)]


@pytest.mark.parametrize("cost", STEEPNESS, ids=["gentle", "steep", "cliff"])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 1.1, 1.5, 3.0])
def test_under_any_constant_load_changes_become_rare(cost: Mapping[Level, float], load: float) -> None:
    """Also where no level fits: what is too little at one is too much at the next."""
    watched, _ = queue(lambda at: load / SERVICE, cost, 240.0)
    first, second = ([at for at, _ in watched.changes if (at > 120.0) == late] for late in (False, True))
    assert len(first) <= 16
    assert len(second) <= 8


@pytest.mark.parametrize("load", [0.2, 0.5, 1.1, 1.5, 3.0])
def test_answers_wait_no_longer_than_they_may_where_a_level_is_cheap_enough(load: float) -> None:
    _, longest = queue(lambda at: load / SERVICE, costs(2, 0.5, 0.25), 60.0)
    assert longest <= 2 * TARGET


def test_a_step_from_half_to_three_times_the_capacity_and_back_takes_few_changes() -> None:
    watched, longest = queue(lambda at: (3.0 if 20.0 < at < 40.0 else 0.5) / SERVICE, costs(2, 0.5, 0.25), 80.0)
    surge = [level for at, level in watched.changes if 20.0 < at < 40.0]
    assert max(surge) is Level.OVERLOADED
    assert next(at for at, level in watched.changes if level is Level.OVERLOADED) < 20.5
    assert len(watched.changes) <= 8
    assert watched.controller.level is Level.NORMAL
    assert longest <= TARGET


# Thresholds by level


def test_thresholds_of_levels_fit_the_exits_and_fall_with_the_load() -> None:
    rules = {
        Level.IDLE: LoadRule((0.99, 0.9)),
        Level.BUSY: LoadRule(audits=0.1),
        Level.OVERLOADED: LoadRule((0.7, 0.5)),
    }
    check_thresholds(rules, (0.9, 0.9))
    with pytest.raises(
        RouteInvalid, match=r"exit 2: the threshold 0\.95 of the stage itself is above 0\.9 of load\.idle"
    ):
        check_thresholds(rules, (0.9, 0.95))
    with pytest.raises(
        RouteInvalid, match=r"exit 1: the threshold 0\.7 of load\.overloaded is above 0\.6 of the stage"
    ):
        check_thresholds(rules, (0.6, 0.8))
    with pytest.raises(RouteInvalid, match=r"load\.idle\.thresholds: expected 1, one for each exit, got 2"):
        check_thresholds(rules, (0.9,))
