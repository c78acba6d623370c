"""What routes saw of their answers, as a certificate reads it: all of it, in order of arrival, across restarts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.audits.loss import ExitTotals, rate
from offramp_adapters.audits.observation import ExitObservation, ShadowObservation
from offramp_server.routing.arrivals import Arrival, Arrivals
from offramp_server.routing.recorder import OVERFLOW, SHUTDOWN, Recorder
from offramp_server.store.audits import (
    SCHEMA,
    Gap,
    Pair,
    Retention,
    Step,
    Unaudited,
    exit_totals,
    gaps,
    prune,
    replay,
    route_epochs,
    shadow_totals,
)
from offramp_server.store.database import Database, read_file
from offramp_server.store.epochs import CRASHED, Epoch, Epochs
from offramp_server.store.schema import connect
from offramp_server.store.writer import Buffering
from scheduling_fakes import HandClock, on_hand_clock

STAGES = 3


class Server:
    """The part of one that records, with a clock that stands still."""

    def __init__(self, path: Path | None, buffering: Buffering | None = None, held_requests: int = 100) -> None:
        self.database = Database(path, [SCHEMA], buffering)
        self.epochs = Epochs(self.database, lambda: 1000.0)
        self.recorder = Recorder(self.database, self.epochs, lambda: 2000.0, held_requests)

    def epoch(self, subject: str = "a", route: str = "fashion") -> Epoch:
        return self.epochs.current(route, subject)

    async def close(self) -> None:
        await self.recorder.close()
        await self.database.close()

    async def die(self) -> None:
        """What is not committed is gone, and nobody says goodbye."""
        await self.database.close()


def exited(
    sequence: int, item: int = 0, *, audited: bool = False, agrees: bool = True, lost: str = "", exit: int = 0
) -> ExitObservation:
    agreed = (agrees,) * (exit + 1) if audited and not lost else ()
    scores, thresholds = (0.9,) * (exit + 1), (0.8,) * (exit + 1)
    return ExitObservation(1, sequence, item, exit, STAGES, scores, thresholds, 0.25, 0.25, audited, lost, agreed, 7, 8)


def deferred(sequence: int, item: int = 0) -> ExitObservation:
    return ExitObservation(
        1, sequence, item, STAGES - 1, STAGES, (0.1, 0.2, 0.9), (0.8, 0.8), 1.0, 0.25, True, "", (True, False), 3, 3
    )


async def stream(server: Server, epoch: int = 1, position: int = 0) -> list[Step]:
    """Of one of the route's epochs."""
    await server.database.flush()
    found = (await server.database.read(lambda connection: route_epochs(connection, "fashion")))[epoch - 1]
    return await server.database.read(lambda connection: list(replay(connection, found, position)))


def short(steps: list[Step]) -> list[object]:
    """Pairs by sequence and item."""
    return [(s.seen.sequence, s.seen.item) if isinstance(s, Pair) else s for s in steps]


# Order


async def test_a_score_that_is_no_number_is_kept_as_json_has_it() -> None:
    server = Server(None)
    arrival = server.recorder.begin(server.epoch())
    arrival.note([replace(exited(0, audited=True, agrees=False), scores=(math.nan,))])
    arrival.release()
    server.recorder.hand_over()
    [pair] = await stream(server)
    assert isinstance(pair, Pair)
    assert math.isnan(pair.seen.scores[0])
    [(text, valid)] = await server.database.read(
        lambda connection: connection.execute("SELECT scores, json_valid(scores) FROM exits").fetchall()
    )
    assert (text, valid) == ("[null]", 1)
    await server.close()


async def test_the_stream_says_at_which_rate_of_audits_each_item_came() -> None:
    server = Server(None)
    rates = {0: 0.25, 1: 0.25, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.25}
    seen = [replace(exited(number), probability=rate, rate=rate) for number, rate in rates.items()]
    seen[3] = replace(deferred(3), rate=0.0)
    for each in seen:
        arrival = server.recorder.begin(server.epoch())
        arrival.note([each])
        arrival.release()
    server.recorder.hand_over()
    pair = Pair(3, 2000.0, seen[3])
    steps = [Unaudited(0, 2, 0.25), Unaudited(2, 1, 0.0), pair, Unaudited(4, 1, 0.0), Unaudited(5, 1, 0.25)]
    assert await stream(server) == steps
    assert await stream(server, position=1) == [Unaudited(1, 1, 0.25), *steps[1:]]
    total = server.epoch().total
    assert (total.items, total.unseen) == (6, 3)
    await server.close()


async def test_a_late_audit_is_where_its_request_came_and_not_where_it_ended() -> None:
    server = Server(None)
    first, second, third = (server.recorder.begin(server.epoch()) for _ in range(3))
    third.note([deferred(third.sequence)])
    third.release()
    second.note([exited(second.sequence)])
    second.release()
    assert server.recorder.held == 3
    first.hold()
    first.release()
    first.note([exited(first.sequence, audited=True, agrees=False)])
    assert server.epoch().items == 0
    first.release()

    assert server.recorder.held == 0
    server.recorder.hand_over()
    pair, between, last = await stream(server)
    assert isinstance(pair, Pair)
    assert pair.seen == exited(first.sequence, audited=True, agrees=False)
    assert (pair.position, pair.time) == (0, 2000.0)
    assert between == Unaudited(1, 1, 0.25)
    assert isinstance(last, Pair)
    assert last.seen == deferred(third.sequence)
    await server.close()


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[str]], list[int]]:
    """What becomes of the items of each request, and in which order the requests and their audits end."""
    requests = draw(st.lists(st.lists(st.sampled_from(["exit", "audit", "defer", "lost"]), max_size=3), max_size=12))
    ends = [number for number, items in enumerate(requests) for _ in range(1 + ("audit" in items))]
    return requests, draw(st.permutations(ends))


@given(histories())
def test_whatever_the_order_in_which_answers_and_audits_come_the_stream_is_that_of_the_arrivals(
    history: tuple[list[list[str]], list[int]],
) -> None:
    requests, ends = history
    order: list[Arrival] = []
    arrivals = Arrivals(100, order.append)
    began = [arrivals.add(sequence, 0.0) for sequence in range(len(requests))]
    for number, items in enumerate(requests):
        if "audit" in items:
            began[number].hold()
    for count, number in enumerate(ends):
        # Nothing is handed on as long as something older may still be seen.
        began[number].release()
        settled = {other for other in range(len(requests)) if other not in ends[count + 1 :]}
        expected = next((n for n in range(len(requests)) if n not in settled), len(requests))
        assert [arrival.sequence for arrival in order] == list(range(expected))
    assert order == began
    assert arrivals.held == 0


@given(histories())
def test_totals_are_those_of_all_items_and_the_stream_has_each_exactly_once(
    history: tuple[list[list[str]], list[int]],
) -> None:
    asyncio.run(_totals_and_stream(*history))


async def _totals_and_stream(requests: list[list[str]], ends: list[int]) -> None:
    server = Server(None)
    expected: list[ExitObservation] = []
    began = [server.recorder.begin(server.epoch()) for _ in requests]
    audits: dict[int, list[ExitObservation]] = {}
    for arrival, items in zip(began, requests, strict=True):
        for item, what in enumerate(items):
            seen = {
                "exit": exited(arrival.sequence, item),
                "audit": exited(arrival.sequence, item, audited=True, agrees=bool(item % 2)),
                "defer": deferred(arrival.sequence, item),
                "lost": exited(arrival.sequence, item, audited=True, lost="full"),
            }[what]
            expected.append(seen)
            if what == "audit":
                audits.setdefault(arrival.sequence, []).append(seen)
            else:
                arrival.note([seen])
        if arrival.sequence in audits:
            arrival.hold()
    for number in ends:
        arrival = began[number]
        arrival.release()
        if not arrival.settled:
            arrival.note(audits[arrival.sequence])
    await server.recorder.close()

    steps = await stream(server) if requests else []
    assert [step.seen for step in steps if isinstance(step, Pair)] == [seen for seen in expected if seen.audited]
    count = sum(step.items if isinstance(step, Unaudited) else 1 for step in steps)
    assert count == len(expected)
    totals = ExitTotals()
    for seen in expected:
        totals.count(seen)
    kept = ExitTotals()
    for each in (await server.database.read(lambda connection: exit_totals(connection, 1))).values():
        kept.add(each)
    assert kept == totals
    assert rate(kept) == rate(totals)
    await server.database.close()


async def test_a_request_that_hangs_stops_the_others_only_until_too_many_wait() -> None:
    server = Server(None, held_requests=3)
    stuck = server.recorder.begin(server.epoch())
    for _ in range(3):
        arrival = server.recorder.begin(server.epoch())
        arrival.note([deferred(arrival.sequence)])
        arrival.release()
    stuck.note([exited(0)])
    stuck.release()
    server.recorder.hand_over()
    assert short(await stream(server)) == [Gap(0, 0, 0, 1, "overdue", 1), (1, 0), (2, 0), (3, 0)]
    await server.close()


async def test_what_waits_is_bounded_by_its_items_where_requests_are_large() -> None:
    server = Server(None, held_requests=5)
    stuck = server.recorder.begin(server.epoch())
    for _ in range(3):
        arrival = server.recorder.begin(server.epoch())
        arrival.note([deferred(arrival.sequence, item) for item in range(2)])
        arrival.release()
    # The third brought the sixth item.
    assert server.recorder.held == 0
    stuck.note([exited(0, audited=True)])
    stuck.release()
    again = server.recorder.begin(server.epoch())
    assert server.recorder.held == 1
    again.release()
    server.recorder.hand_over()
    steps = short(await stream(server))
    assert steps == [Gap(0, 0, 0, 1, "overdue", 1), *((number, item) for number in (1, 2, 3) for item in (0, 1))]
    await server.close()


async def test_requests_that_were_begun_and_never_answered_are_in_the_stream_by_their_number() -> None:
    server = Server(None)
    for reason, items in (("", 1), ("deadline_exceeded", 2), ("deadline_exceeded", 3)):
        arrival = server.recorder.begin(server.epoch())
        arrival.failure, arrival.items = reason, items
        arrival.release()
    answered = server.recorder.begin(server.epoch())
    answered.note([deferred(answered.sequence)])
    answered.release()
    server.recorder.hand_over()
    assert short(await stream(server)) == [Gap(0, 0, 0, 2, "deadline_exceeded", 5), (3, 0)]
    await server.close()


async def test_shadows_are_kept_with_their_totals() -> None:
    server = Server(None)
    arrival = server.recorder.begin(server.epoch())
    arrival.note([
        ShadowObservation(1, 0, 0, "full", "small", agreed=True, served=1, shadowed=1),
        ShadowObservation(1, 0, 1, "full", "small", agreed=False, served=1, shadowed=2),
        ShadowObservation(1, 0, 2, "full", "small", lost="overload"),
    ])  # fmt: skip
    arrival.release()
    await server.recorder.close()
    await server.database.flush()
    [totals] = (await server.database.read(lambda connection: shadow_totals(connection, 1))).items()
    assert totals[0] == ("full", "small")
    assert (totals[1].items, totals[1].agreed, totals[1].disagreed, totals[1].lost) == (3, 1, 1, 1)
    rows = await server.database.read(lambda c: c.execute("SELECT item, lost, agreed FROM shadows").fetchall())
    assert rows == [(0, "", 1), (1, "", 0), (2, "overload", None)]
    await server.database.close()


def test_what_was_seen_is_written_soon_by_itself() -> None:
    loop = HandClock()

    async def test() -> None:
        server = Server(None)
        arrival = server.recorder.begin(server.epoch())
        arrival.note([deferred(arrival.sequence)])
        arrival.release()
        assert short(await stream(server)) == []
        await loop.advance(1)
        assert short(await stream(server)) == [(0, 0)]
        await server.close()

    on_hand_clock(test(), loop)


# Losses


async def test_rows_that_the_buffer_has_no_room_for_leave_a_gap_and_exact_totals() -> None:
    server = Server(None, Buffering(commit_interval=3600, commit_rows=10_000, limit=12))

    def answer(seen: Callable[[int], ExitObservation]) -> None:
        arrival = server.recorder.begin(server.epoch())
        arrival.note([seen(arrival.sequence)])
        arrival.release()

    for _ in range(20):
        answer(exited)
        answer(deferred)
    server.recorder.hand_over()
    assert server.recorder.overflowed == 20
    await server.database.flush()
    answer(lambda sequence: exited(sequence, audited=True, agrees=False))
    server.recorder.hand_over()

    assert short(await stream(server)) == [Unaudited(0, 1, 0.25), Gap(1, 40, 20, 0, OVERFLOW), (40, 0)]
    totals = await server.database.read(lambda connection: exit_totals(connection, 1))
    assert (totals[0].items, totals[0].disagreed, totals[2].items) == (21, 1, 20)
    await server.close()


async def test_what_is_under_way_when_the_server_stops_is_a_gap() -> None:
    server = Server(None)
    server.recorder.begin(server.epoch())
    later = server.recorder.begin(server.epoch())
    later.note([deferred(later.sequence)])
    later.release()
    await server.recorder.close()
    assert short(await stream(server)) == [Gap(0, 0, 0, 1, SHUTDOWN, 1), (1, 0)]
    await server.database.close()


# Restarts


async def test_epochs_sequences_positions_and_totals_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    for run in range(3):
        server = Server(path)
        epoch = server.epoch()
        assert (epoch.number, epoch.items, epoch.sequence) == (1, 2 * run, 2 * run)
        assert sum(totals.items for totals in epoch.totals.values()) == 2 * run
        for seen in (exited, deferred):
            arrival = server.recorder.begin(epoch)
            arrival.note([seen(arrival.sequence)])
            arrival.release()
        await server.close()
    server = Server(path)
    assert short(await stream(server)) == [
        Unaudited(0, 1, 0.25), (1, 0), Unaudited(2, 1, 0.25), (3, 0), Unaudited(4, 1, 0.25), (5, 0),
    ]  # fmt: skip
    await server.close()


async def test_after_a_crash_no_sequence_number_is_used_twice_and_the_stream_says_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    server = Server(path)
    arrival = server.recorder.begin(server.epoch())
    arrival.note([deferred(arrival.sequence)])
    arrival.release()
    server.recorder.hand_over()
    unwritten = server.recorder.begin(server.epoch())
    await server.die()

    again = Server(path)
    epoch = again.epoch()
    assert epoch.number == 1
    assert epoch.sequence > unwritten.sequence
    arrival = again.recorder.begin(epoch)
    arrival.note([deferred(arrival.sequence)])
    arrival.release()
    again.recorder.hand_over()
    assert short(await stream(again)) == [(0, 0), Gap(1, 1, 0, 0, CRASHED), (arrival.sequence, 0)]
    await again.close()
    third = Server(path)
    assert len(await third.database.read(lambda connection: gaps(connection, 1))) == 1
    await third.close()


async def test_numbers_are_reserved_in_time_even_if_nothing_is_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp_server.routing.recorder.RESERVED", 10)
    server = Server(tmp_path / "state.sqlite3")
    for _ in range(1000):
        server.recorder.begin(server.epoch()).release()
        assert server.epoch().reserved > server.epoch().sequence
    await server.database.flush()
    [(reserved,)] = await server.database.read(lambda c: c.execute("SELECT reserved FROM epochs").fetchall())
    assert reserved > server.epoch().sequence
    await server.close()


async def test_another_fingerprint_is_another_epoch_even_if_it_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    server = Server(path)
    numbers = []
    for fingerprint in ("a", "b", "b", "a"):
        epoch = server.epoch(fingerprint)
        numbers.append(epoch.number)
        server.recorder.begin(epoch).release()
    assert numbers == [1, 2, 2, 3]
    assert server.epoch("z", route="other").number == 1
    await server.close()

    again = Server(path)
    assert again.epoch("a").number == 3
    assert again.epoch("b").number == 4
    stored = await again.database.read(lambda connection: route_epochs(connection, "fashion"))
    assert [(each.number, each.subject, each.began) for each in stored] == [
        (1, "a", 1000),
        (2, "b", 1000),
        (3, "a", 1000),
    ]
    assert stored[0].fingerprint == stored[2].fingerprint != stored[1].fingerprint
    await again.close()


async def test_a_request_keeps_the_epoch_in_which_it_came() -> None:
    server = Server(None)
    early = server.recorder.begin(server.epoch("a"))
    late = server.recorder.begin(server.epoch("b"))
    late.note([deferred(late.sequence)])
    late.release()
    early.note([deferred(early.sequence)])
    early.release()
    server.recorder.hand_over()
    assert short(await stream(server, epoch=1)) == [(0, 0)]
    assert short(await stream(server, epoch=2)) == [(0, 0)]
    await server.close()


# Retention


@pytest.fixture
async def full(tmp_path: Path) -> Path:
    """Ten exits, every second of them audited, and a shadow each."""
    server = Server(tmp_path / "state.sqlite3")
    for number in range(10):
        arrival = server.recorder.begin(server.epoch())
        arrival.time = float(number)
        arrival.note([exited(arrival.sequence, audited=number % 2 == 1)])
        arrival.note([ShadowObservation(1, number, 0, "full", "small")])
        arrival.release()
    await server.close()
    return tmp_path / "state.sqlite3"


@pytest.mark.parametrize(
    ("keep", "rows", "first"),
    [
        (Retention(age=100.0, rows=100), 5, 0),
        (Retention(age=100.0, rows=2), 2, 6),
        (Retention(age=4.0, rows=100), 2, 6),
        (Retention(age=100.0, rows=2, step=1), 2, 6),
        (Retention(age=0.0, rows=100), 0, 10),
    ],
)
def test_what_is_too_old_or_too_much_goes_and_replays_begin_behind_it(
    full: Path, keep: Retention, rows: int, first: int
) -> None:
    with closing(connect(full)) as connection:
        while prune(connection, keep, now=10.0):
            pass
        [kept] = connection.execute("SELECT count(*) FROM exits").fetchone()
        assert kept == rows
        [epoch] = route_epochs(connection, "fashion")
        assert epoch.pruned == first
        steps = list(replay(connection, epoch))
        assert (steps[0].position if steps else 10) == first
        # What is gone was audited, and must not look like what was not.
        assert sum(each.items for each in exit_totals(connection, 1).values()) == 10


async def test_a_certificate_may_go_on_where_it_stopped(full: Path) -> None:
    def read(position: int) -> list[Step]:
        return read_file(
            full, lambda connection: list(replay(connection, route_epochs(connection, "fashion")[0], position))
        )

    assert short(read(7)) == [(7, 0), Unaudited(8, 1, 0.25), (9, 0)]
    assert read(10) == []
