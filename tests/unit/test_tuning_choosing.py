"""Which engine is taken, given how long each took."""

from __future__ import annotations

import pytest
from offramp_server.model_spec import WarmupSettings
from offramp_server.tuning.choosing import (
    because_measured,
    because_trivial,
    contenders,
    full_batch,
    is_trivial,
    thread_counts,
    winner,
)
from tuning_fakes import pt2_spec, timed


def test_the_fastest_wins() -> None:
    assert winner({"plain": timed(20), "folded": timed(15), "compiled": timed(10)}) == "compiled"


def test_less_than_three_percent_do_not_replace_what_is_simpler() -> None:
    assert winner({"plain": timed(100), "folded": timed(98)}) == "plain"
    assert winner({"plain": timed(100), "folded": timed(96.9)}) == "folded"
    # Small steps do not add up to an engine that is 3 % slower than the best.
    assert winner({"plain": timed(100), "folded": timed(98), "compiled": timed(96)}) == "folded"


def test_one_item_counts_as_much_as_a_full_batch() -> None:
    latency, throughput = timed(1, 32), timed(2, 12)
    assert winner({"latency": latency, "throughput": throughput}) == "throughput"
    assert winner({"latency": timed(1, 32), "throughput": timed(2, 30)}) == "latency"


def test_only_what_is_near_the_best_is_looked_at_again() -> None:
    assert contenders({"plain": timed(20), "folded": timed(12.9), "compiled": timed(10)}) == ["folded", "compiled"]
    assert contenders({}) == []


@pytest.mark.parametrize(
    ("limit", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (12, [1, 2, 4, 8, 12])]
)
def test_threads_are_tried_in_powers_of_two_and_all_of_them(limit: int, counts: list[int]) -> None:
    assert thread_counts(limit) == counts


def test_a_model_that_takes_hardly_any_time_is_not_worth_tuning() -> None:
    spec = pt2_spec()
    assert is_trivial(spec, {1: 0.0001, 16: 0.0004})
    assert not is_trivial(spec, {1: 0.0001, 16: 0.0006})
    assert not is_trivial(spec, {})
    assert because_trivial(spec, 0.0004) == (
        "auto: the plain engine; a batch of 16 takes 0.4 ms, and engines are compared from 0.5 ms on"
    )


def test_the_full_batch_is_the_largest_that_is_warmed_up() -> None:
    assert full_batch(pt2_spec()) == 16
    assert full_batch(pt2_spec(warmup=WarmupSettings(batch_sizes=(1, 4)))) == 4
    assert full_batch(pt2_spec(max_batch_size=0)) == 1


def test_the_reason_has_the_figures() -> None:
    measured = {"torch-eager": timed(2, 20), "onnxruntime": timed(1, 12.34)}
    assert because_measured(pt2_spec(), "onnxruntime", "torch-eager", measured) == (
        "auto: the fastest of 2 that agree; a batch of 16 takes 12.3 ms, one item 1 ms, with torch-eager 20 ms and 2 ms"
    )
    assert because_measured(pt2_spec(), "torch-eager", "torch-eager", measured) == (
        "auto: the plain engine; nothing else of 2 that agree is 3 % faster; a batch of 16 takes 20 ms, one item 2 ms"
    )
    assert because_measured(pt2_spec(), "torch-eager", "torch-eager", {"torch-eager": timed(2, 20)}) == (
        "auto: the plain engine; nothing else could be timed; a batch of 16 takes 20 ms, one item 2 ms"
    )
