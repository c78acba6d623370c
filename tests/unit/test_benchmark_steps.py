"""A load in steps: what is sent, and how what came of it is counted."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from benchmarks.harness.steps import Columns, Plan, Turn
from benchmarks.harness.steps_report import draw, phase_table
from benchmarks.load_step import level_changes
from benchmarks.runtimes.open_load import arrivals

PLAN = Plan(((10.0, 100.0), (5.0, 400.0), (10.0, 100.0)), deadline=0.2, rounds=1)


def turn(route: str, requests: int = 100) -> Turn:
    """One request every quarter of a second: half in time, a quarter refused, a quarter too late."""
    due = [number * 0.25 for number in range(requests)]
    latencies, statuses = [0.01, 0.3, 0.01, 0.02], ["OK", "OK", "RESOURCE_EXHAUSTED", "OK"]
    right = [True, True, False, False]
    rounds = requests // 4
    return Turn(route, 1, 1000.0, due, latencies * rounds, statuses * rounds, right * rounds, right * rounds, 0.0)


def test_requests_come_at_the_rate_of_their_phase_and_in_order() -> None:
    times = list(arrivals(PLAN.phases, random.Random(1)))
    assert times == sorted(times)
    for (seconds, rate), start, end in zip(PLAN.phases, PLAN.edges, PLAN.edges[1:], strict=False):
        count = sum(start <= at < end for at in times)
        assert abs(count - seconds * rate) < 5 * math.sqrt(seconds * rate)
    assert times[-1] < PLAN.edges[-1] == 25.0


def test_an_answer_after_the_deadline_counts_as_none() -> None:
    columns = Columns.of(turn("fixed"), PLAN.deadline)
    assert columns.share_answered == 0.5
    assert columns.accuracy == 0.5
    assert columns.share_right == 0.25
    assert columns.percentile_ms(100) == pytest.approx(20)
    assert columns.refused.sum() == 25


def test_a_phase_has_the_requests_that_were_due_in_it() -> None:
    assert len(Columns.of(turn("fixed"), PLAN.deadline).during(10.0, 15.0).due) == 20


def test_the_report_has_a_row_for_each_phase_and_route_and_a_picture(tmp_path: Path) -> None:
    turns = [turn("fixed"), turn("levels")]
    rows = phase_table(turns, PLAN)
    assert [line.split("|")[1].strip() for line in rows.splitlines()[2:]] == [
        "before", "before", "surge", "surge", "after", "after",
    ]  # fmt: skip
    draw(turns, [(999.0, "idle"), (1010.1, "overloaded")], PLAN, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_changes_of_the_level_are_read_off_the_servers_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "2026-11-22T13:08:36.500Z INFO offramp.routing: load: busy, was normal\n"
        "2026-11-22T13:08:37.000Z WARNING offramp.rpc: call failed: load: heavy\n"
    )
    [(at, level)] = level_changes(log)
    assert level == "busy"
    assert at % 60 == pytest.approx(36.5)
