"""What the scheduler takes from the cost of batches."""

from __future__ import annotations

import pytest
from offramp_server.scheduling.cost import CostCurve


def test_where_a_batch_costs_what_its_items_do_gathering_never_pays() -> None:
    assert CostCurve({1: 0.01, 16: 0.16}, 16).gather_seconds == 0.0
    # Nor where the difference is in the measurement.
    assert CostCurve({1: 0.01, 16: 0.15}, 16).gather_seconds == 0.0
    assert CostCurve({1: 0.01, 16: 0.2}, 16).gather_seconds == 0.0


def test_where_a_batch_costs_hardly_more_than_an_item_gathering_pays_for_about_as_long_as_a_batch_takes() -> None:
    assert CostCurve({1: 0.010, 16: 0.013}, 16).gather_seconds == pytest.approx(0.013, rel=0.2)


def test_the_more_batching_saves_the_longer_it_pays() -> None:
    saving = [CostCurve({1: 1.0, 16: 16.0 * share}, 16).gather_seconds / (16.0 * share) for share in (0.7, 0.5, 0.2)]
    assert saving == sorted(saving)
    assert saving[0] > 0


def test_a_model_that_was_not_warmed_up_gathers_nothing_until_two_sizes_have_been_seen() -> None:
    cost = CostCurve({}, 16)
    assert (cost.gather_seconds, cost.background_items) == (0.0, 1)
    cost.learn(4, 1.0)
    assert (cost.gather_seconds, cost.background_items) == (0.0, 1)
    cost.learn(16, 1.1)
    assert cost.gather_seconds > 0.5
    assert cost.background_items == 16


def test_the_curve_follows_what_batches_come_to_cost() -> None:
    cost = CostCurve({1: 1.0, 16: 1.0}, 16)
    assert cost.gather_seconds > 0.8
    for _ in range(100):
        cost.learn(16, 16.0)
    assert cost.gather_seconds == 0.0


@pytest.mark.parametrize(
    ("seconds", "items"),
    [({1: 1.0, 16: 16.0}, 2), ({1: 2.0, 16: 17.0}, 3), ({1: 1.0, 16: 1.0}, 16), ({1: 1.0, 16: 100.0}, 1), ({}, 1)],
)
def test_a_batch_for_which_nobody_waits_takes_about_as_long_as_two_items_by_themselves(
    seconds: dict[int, float], items: int
) -> None:
    assert CostCurve(seconds, 16).background_items == items
