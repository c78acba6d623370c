"""What a reader of the open loop relies on: fair rates, honest latencies, and nothing forgotten."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.load import LoadError
from benchmarks.harness.open_loop import (
    OpenPlan,
    OpenSample,
    Sent,
    measure_open,
    offered_rates,
    read,
    summarise,
)
from benchmarks.harness.open_report import open_section
from benchmarks.harness.tables import as_json
from benchmarks.harness.workloads import Workload
from benchmarks.runtimes.open_load import arrivals
from benchmarks.runtimes.route_load import pack
from benchmarks.servers.echo import GrpcAioEcho

ONES = np.ones((16, 4), np.float32)
WORKLOAD = Workload("identity", Path("identity.pt2"), ONES, ONES)
PLAN = OpenPlan(rounds=1, seconds=1.0)


def sent(latencies: list[float], statuses: list[str]) -> Sent:
    return Sent(np.array(latencies), np.zeros(len(latencies)), np.array(statuses))


def summary(*clients: Sent) -> OpenSample:
    return summarise("A", "identity", 10.0, 0, clients, deadline_s=1.0, cpu_s=0.004, other_cores=0.0)


def test_arrivals_are_a_poisson_process_of_the_rate_asked_for() -> None:
    times = np.array(list(arrivals([(100.0, 50.0)], random.Random(1))))
    gaps = np.diff(times)
    assert times[-1] < 100.0
    assert len(times) == pytest.approx(5000, rel=0.05)
    # The deviation of an exponential distribution is its mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_arrivals_of_one_seed_are_the_same_for_every_server() -> None:
    phases = [(1.0, 100.0), (1.0, 20.0)]
    assert list(arrivals(phases, random.Random(7))) == list(arrivals(phases, random.Random(7)))


def test_all_servers_are_offered_the_same_rates_from_half_of_the_slowest_to_nearly_all_of_the_fastest() -> None:
    assert offered_rates([100.0, 400.0, 1000.0], PLAN) == [50.0, 90.0, 500.0, 900.0]


def test_no_more_is_offered_than_the_clients_can_send() -> None:
    assert offered_rates([1000.0, 10000.0], PLAN) == [500.0, 900.0, 1500.0]


def test_a_request_that_was_not_answered_in_time_took_for_ever() -> None:
    found = summary(sent([0.1, 0.2], ["OK", "OK"]), sent([1.5, 1.0], ["OK", "DEADLINE_EXCEEDED"]))
    assert (found.requests, found.in_time, found.refused) == (4, 2, 0)
    assert math.isinf(found.p99_ms)
    assert found.cpu_us == pytest.approx(1000.0)


def test_what_the_server_turned_away_is_counted_apart_from_what_the_caller_gave_up() -> None:
    found = summary(sent([0.1, 0.1, 1.0], ["OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"]))
    assert (found.in_time, found.refused) == (1, 1)


def test_an_answer_without_its_tensor_is_an_error() -> None:
    line = json.dumps({"latencies_s": [0.1], "late_s": [0.0], "statuses": ["OK"]}).encode()
    with pytest.raises(LoadError, match="an answer of 3 bytes that should bring 16"):
        read(line + b"\n" + pack([b"abc"]), WORKLOAD)


def test_the_report_says_that_latency_is_beyond_the_deadline_rather_than_a_number() -> None:
    slow = replace(summary(sent([1.0], ["DEADLINE_EXCEEDED"])), server="Slow")
    report = open_section([summary(sent([0.25], ["OK"])), slow], PLAN)
    assert "| 10            | A      | 100.0%           | 250.0   |" in report
    assert "| 10            | Slow   | 0.0%             | > 1,000 |" in report


def test_json_has_null_for_what_never_ended() -> None:
    assert json.loads(as_json({"p99_ms": math.inf, "rates": (1.0, 2.0)})) == {"p99_ms": None, "rates": [1.0, 2.0]}


def test_a_server_that_keeps_up_answers_every_request_of_four_clients(tmp_path: Path) -> None:
    server = GrpcAioEcho()
    server.start([WORKLOAD], tmp_path)
    try:
        began = time.monotonic()
        found = measure_open(server, WORKLOAD, 40.0, 0, replace(PLAN, seconds=0.5, deadline_s=30.0))
        assert time.monotonic() - began >= 0.5
    finally:
        server.stop()
    assert found.requests == found.in_time > 0
    assert found.refused == 0
