"""Audits and shadows: bounded, never forgotten, dropped without a look at what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.audits.observation import Observation, ShadowObservation
from offramp_adapters.routes.plan import FollowUp, Plan
from offramp_adapters.routes.strategy import Level
from offramp_server.errors import Unavailable
from offramp_server.routing.follow_ups import Errand, FollowUpLimits, FollowUps
from offramp_server.telemetry.stats import Stats
from scheduling_fakes import HandClock, on_hand_clock


def plan() -> Plan[tuple[Observation, ...]]:
    yield from ()
    raise AssertionError("whoever performs it does not look at it here")


class Office:
    """Errands that end when the test says so, and what came of each."""

    def __init__(self, limits: FollowUpLimits | None = None) -> None:
        self.stats = Stats()
        self.follow_ups = FollowUps(limits or FollowUpLimits(), self.stats)
        self.results: list[asyncio.Future[Sequence[Observation]]] = []
        # By number of the errand: why it was lost; "": it was done.
        self.ended: dict[int, str] = {}

    def add(self, route: str = "fashion", kind: str = "audit", dropped: str = "", **fields: Any) -> int:
        number = len(self.results)
        result: asyncio.Future[Sequence[Observation]] = asyncio.get_running_loop().create_future()
        self.results.append(result)

        def ended(seen: Sequence[Observation]) -> None:
            assert number not in self.ended
            [observation] = seen
            assert observation.sequence == number
            self.ended[number] = observation.lost

        def lost(reason: str) -> tuple[Observation, ...]:
            return (ShadowObservation(1, number, 0, "a", "b", reason),)

        async def perform() -> Sequence[Observation]:
            return await result

        self.follow_ups.add(Errand(route, FollowUp(kind, plan(), lost, dropped), perform, ended, **fields))
        return number

    def finish(self, number: int) -> None:
        self.results[number].set_result([ShadowObservation(1, number, 0, "a", "b")])

    def outcomes(self, route: str = "fashion", kind: str = "audit") -> dict[str, int]:
        return {key[2]: count for key, count in self.stats.follow_ups.items() if key[:2] == (route, kind)}


def with_hand_clock(test: Any) -> None:
    loop = HandClock()
    on_hand_clock(test(loop), loop)


async def test_what_was_seen_is_reported_once() -> None:
    office = Office()
    office.add()
    office.finish(0)
    assert await office.follow_ups.drain(10)
    assert office.ended == {0: ""}
    assert office.outcomes() == {"done": 1}


async def test_more_than_may_be_under_way_are_dropped_and_later_ones_are_not() -> None:
    office = Office(FollowUpLimits(count=2))
    for _ in range(4):
        office.add()
    assert office.ended == {2: "full", 3: "full"}
    office.finish(0)
    await settled(office, 1)
    office.add()
    assert office.follow_ups.under_way == 2
    await office.follow_ups.close()


async def settled(office: Office, under_way: int) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert office.follow_ups.under_way == under_way


async def test_inputs_are_kept_up_to_a_bound_that_does_not_choose_by_size() -> None:
    office = Office(FollowUpLimits(bytes=100))
    office.add(size=90)
    # A large one is let in where a small one would be.
    office.add(size=1000)
    office.add(size=1)
    assert office.ended == {2: "memory"}
    assert office.follow_ups.held_bytes == 1090
    office.finish(1)
    await settled(office, 1)
    office.add(size=5)
    assert office.follow_ups.held_bytes == 95
    await office.follow_ups.close()
    assert office.follow_ups.held_bytes == 0


def test_one_that_takes_too_long_is_given_up() -> None:
    async def test(loop: HandClock) -> None:
        office = Office(FollowUpLimits(age=5.0))
        office.add()
        await loop.advance(4)
        office.add()
        await loop.advance(2)
        assert office.ended == {0: "late"}
        office.finish(1)
        await loop.advance(0)
        assert office.ended == {0: "late", 1: ""}
        assert office.outcomes() == {"late": 1, "done": 1}

    with_hand_clock(test)


async def test_one_that_raises_is_lost() -> None:
    office = Office()
    office.add()
    office.add()
    office.results[0].set_exception(TimeoutError("not ours"))
    office.results[1].cancel()
    await office.follow_ups.drain(10)
    assert office.ended == {0: "failed", 1: "failed"}


@pytest.mark.parametrize(("error", "level"), [(KeyError("a mistake"), "ERROR"), (Unavailable("gone"), "DEBUG")])
async def test_a_mistake_of_the_server_s_own_is_logged_as_one(
    error: Exception, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "offramp.routing")
    office = Office()
    office.add()
    office.results[0].set_exception(error)
    await office.follow_ups.drain(10)
    [record] = caplog.records
    assert record.levelname == level
    assert bool(record.exc_info) == (level == "ERROR")


async def test_a_strategy_and_an_overload_drop_shadows_before_they_cost_anything() -> None:
    office = Office(FollowUpLimits(count=1))
    office.add(kind="shadow", dropped="load")
    office.add(kind="shadow", level=Level.OVERLOADED)
    audit = office.add(kind="audit", level=Level.OVERLOADED)
    assert office.ended == {0: "load", 1: "overload"}
    office.finish(audit)
    await office.follow_ups.drain(10)
    assert office.outcomes(kind="shadow") == {"load": 1, "overload": 1}
    assert office.outcomes(kind="audit") == {"done": 1}


async def test_those_of_a_route_that_is_gone_are_given_up_even_if_they_have_not_begun() -> None:
    office = Office()
    office.add("gone")
    office.add("fashion")
    office.follow_ups.drop("gone")
    await settled(office, 1)
    assert office.ended == {0: "removed"}
    await office.follow_ups.close()
    assert office.ended == {0: "removed", 1: "shutdown"}


def test_a_drain_waits_and_then_gives_up() -> None:
    async def test(loop: HandClock) -> None:
        office = Office()
        office.add()
        office.add()
        draining = asyncio.create_task(office.follow_ups.drain(3.0))
        await loop.advance(1)
        office.finish(0)
        await loop.advance(1)
        assert not draining.done()
        await loop.advance(2)
        assert not await draining
        await office.follow_ups.close()
        office.add()
        assert office.ended == {0: "", 1: "shutdown", 2: "shutdown"}

    with_hand_clock(test)


ACTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.sampled_from(["audit", "shadow"]), st.integers(0, 60), st.sampled_from(list(Level))
        ),
        st.tuples(st.just("finish"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.floats(0, 4)),
        st.just(("drop",)),
    ),
    max_size=40,
)


@given(ACTS)
def test_every_one_that_was_offered_is_done_or_dropped_and_told_of_once(acts: list[tuple[Any, ...]]) -> None:
    def test(loop: HandClock) -> Coroutine[Any, Any, None]:
        return _play(loop, acts)

    with_hand_clock(test)


async def _play(loop: HandClock, acts: list[tuple[Any, ...]]) -> None:
    office = Office(FollowUpLimits(count=3, bytes=100, age=5.0))
    for act in acts:
        match act:
            case ("add", kind, size, level):
                office.add(kind=kind, size=size, level=level)
            case ("finish", number) if number < len(office.results) and not office.results[number].done():
                office.finish(number)
            case ("fail", number) if number < len(office.results) and not office.results[number].done():
                office.results[number].set_exception(RuntimeError("broken"))
            case ("wait", seconds):
                await loop.advance(seconds)
            case ("drop",):
                office.follow_ups.drop("fashion")
        assert office.follow_ups.under_way <= 3
    await office.follow_ups.close()
    assert office.follow_ups.under_way == office.follow_ups.held_bytes == 0
    assert office.ended.keys() == set(range(len(office.results)))
    for kind in ("audit", "shadow"):
        offered = office.stats.follow_ups_offered["fashion", kind]
        assert sum(office.outcomes(kind=kind).values()) == offered
    assert sum(office.stats.follow_ups_offered.values()) == len(office.results)
    for future in office.results:
        # Nobody looks at those of errands that were dropped at once.
        if future.done() and not future.cancelled():
            future.exception()
