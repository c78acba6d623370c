"""Cores are divided so that there is one for each thread that computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_fakes import v2_machine, write_machine
from offramp_server.machine.cores import own_affinity
from offramp_server.machine.numa import Node
from offramp_server.machine.plan import (
    MOST_INSTANCES,
    CoresPlan,
    Topology,
    least_crowded,
    plan,
    read_topology,
    threads_of_each,
)

TWO_NODES = (Node(0, tuple(range(8))), Node(1, tuple(range(8, 16))))


def test_without_measurements_one_worker_has_every_core() -> None:
    assert plan(6) == CoresPlan(1, 6)
    assert plan(1) == CoresPlan(1, 1)


def test_without_measurements_there_is_a_worker_for_each_node() -> None:
    assert plan(16, node_cores=8) == CoresPlan(2, 8)
    # A quota leaves less than a node.
    assert plan(4, node_cores=8) == CoresPlan(1, 4)


def test_threads_that_shorten_a_batch_are_taken_where_they_cost_little_throughput() -> None:
    # The two cores of the introduction: 2.0 batches a second against 1.35.
    assert plan(2, {1: 1.0, 2: 0.74}) == CoresPlan(1, 2)


def test_threads_that_hardly_help_go_to_other_workers() -> None:
    assert plan(8, {1: 1.0, 2: 0.99, 4: 0.98, 8: 0.97}) == CoresPlan(8, 1)


def test_threads_that_get_into_each_others_way_are_not_taken() -> None:
    assert plan(4, {1: 0.001, 2: 0.002, 4: 0.004}) == CoresPlan(4, 1)


def test_a_batch_that_gets_faster_at_the_price_of_most_of_the_throughput_does_not() -> None:
    # With 16 threads it is the fastest, and 1 of 16 cores does the work of 4.
    assert plan(16, {1: 1.0, 4: 0.3, 16: 0.2}) == CoresPlan(4, 4)


def test_measurements_with_more_threads_than_a_node_has_do_not_count() -> None:
    assert plan(16, {8: 0.2, 16: 0.11}, node_cores=8) == CoresPlan(2, 8)


def test_workers_do_not_multiply_without_end() -> None:
    assert plan(256, {1: 0.001, 2: 0.001}).instances == MOST_INSTANCES


@given(
    st.integers(1, 512),
    st.dictionaries(st.integers(1, 600), st.floats(1e-6, 1e3)),
    st.none() | st.integers(1, 128),
)
def test_no_plan_has_more_threads_than_cores(cores: int, measured: dict[int, float], node_cores: int | None) -> None:
    found = plan(cores, measured, node_cores)
    assert found.instances >= 1
    assert found.threads >= 1
    assert found.instances * found.threads <= cores
    assert found.threads <= (node_cores or cores)


@given(st.integers(1, 512), st.integers(1, 64))
def test_workers_together_have_no_more_threads_than_cores_unless_they_are_too_many(cores: int, workers: int) -> None:
    each = threads_of_each(Topology(cores, (Node(0, tuple(range(cores))),)), workers)
    assert each == 1 or each * workers <= cores


def test_a_worker_has_no_more_threads_than_a_node_has_cores() -> None:
    assert threads_of_each(Topology(16, TWO_NODES), 1) == 8
    assert threads_of_each(Topology(16, TWO_NODES), 4) == 4
    assert threads_of_each(Topology(4, TWO_NODES), 1) == 4


def test_workers_go_round_the_nodes_and_take_the_place_of_those_that_died() -> None:
    first, second = TWO_NODES
    assert least_crowded(TWO_NODES, []) == first
    assert least_crowded(TWO_NODES, [first]) == second
    assert least_crowded(TWO_NODES, [first, second]) == first
    assert least_crowded(TWO_NODES, [second, second, first]) == first


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", len(own_affinity())), ("100000 100000", 1)])
def test_the_topology_is_what_the_container_has(tmp_path: Path, quota: str, cores: int) -> None:
    root = v2_machine(tmp_path, "/", {"cpu.max": quota})
    found = read_topology(write_machine(root, {"sys/devices/system/node/node0/cpulist": "0-511"}))
    assert found == Topology(cores, (Node(0, tuple(sorted(own_affinity()))),))
