"""Thresholds for an early-exit route are the cheapest that agree with the reference as often as wanted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.confidence.binomial import lower_bound, upper_bound
from offramp_adapters.confidence.thresholds import NEVER, Evidence, choose, curve, examples_needed, outcome
from scipy.stats import beta


def evidence(exits: int = 1, examples: int = 400, seed: int = 0) -> Evidence:
    """Exits whose score is the chance of agreeing."""
    draw = np.random.default_rng(seed)
    scores = draw.uniform(0.3, 1.0, (exits, examples))
    agrees = draw.uniform(size=scores.shape) < scores
    return Evidence(scores, agrees, np.array([*range(1, exits + 1), 20.0]))


def test_an_item_leaves_at_the_first_exit_that_is_sure_enough() -> None:
    given_scores = np.array([[0.9, 0.1, 0.1, np.nan], [0.0, 0.8, 0.2, 0.8]])
    agrees = np.array([[True, True, True, True], [False, False, True, True]])
    point = outcome(Evidence(given_scores, agrees, np.array([1.0, 10.0, 100.0])), (0.5, 0.5))
    assert point.shares == (0.25, 0.5, 0.25)
    assert point.disagreements == 1
    assert point.agreement == 0.75
    assert point.cost == pytest.approx((1 + 11 + 111 + 11) / 4)


def test_a_score_equal_to_the_threshold_leaves() -> None:
    same = Evidence(np.array([[0.5]]), np.array([[True]]), np.array([1.0, 9.0]))
    assert outcome(same, (0.5,)).shares == (1.0, 0.0)


def test_thresholds_that_nothing_reaches_agree_always() -> None:
    point = outcome(evidence(2), (NEVER, NEVER))
    assert (point.agreement, point.shares[-1]) == (1.0, 1.0)
    assert point.cost == pytest.approx(23.0)


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_the_curve_goes_from_all_to_none_deferred_and_gets_cheaper(exits: int) -> None:
    points = curve(evidence(exits))
    assert points[0].shares[-1] == 1.0
    assert points[-1].shares[0] == 1.0
    assert all(later.cost <= earlier.cost for earlier, later in itertools.pairwise(points))


def test_what_is_chosen_keeps_its_promise_on_other_examples_of_the_same_kind() -> None:
    chosen = choose(curve(evidence(2, 2000, seed=1)), agreement=0.95, delta=0.05)
    assert chosen.cost < 20.0
    assert outcome(evidence(2, 100_000, seed=2), chosen.thresholds).agreement >= 0.95


def test_the_chosen_point_is_the_cheapest_that_one_exit_allows() -> None:
    found = evidence(1, 500)
    chosen = choose(curve(found), 0.9, 0.05)
    for threshold in np.unique(found.scores):
        point = outcome(found, (float(threshold),))
        if upper_bound(point.disagreements, point.examples, 0.05) <= 0.1:
            # Candidates are quantiles, so a neighbour may be a few items cheaper.
            assert chosen.cost <= point.cost + 0.15


def test_an_exit_is_used_where_only_hard_items_are_left_to_it() -> None:
    """The items that the second exit is surest of have left at the first one; what remains still pays."""
    draw = np.random.default_rng(0)
    easy = draw.uniform(size=1000) < 0.7
    first = np.where(easy, 0.99, 0.1)
    second = np.where(easy, 0.99, draw.uniform(0.5, 0.9, 1000))
    found = Evidence(np.stack([first, second]), np.stack([easy, second > 0.6]), np.array([1.0, 5.0, 100.0]))
    chosen = choose(curve(found), 0.99, 0.05)
    assert chosen.shares[0] == pytest.approx(easy.mean())
    assert chosen.shares[1] > 0.15


def test_an_agreement_that_nothing_shows_leaves_everything_to_the_reference() -> None:
    assert choose(curve(evidence(1, 20)), 0.999, 0.05).shares[-1] == 1.0


def test_scores_that_are_no_numbers_never_leave() -> None:
    broken = Evidence(np.full((1, 5), np.nan), np.ones((1, 5), bool), np.array([1.0, 2.0]))
    assert [point.shares for point in curve(broken)] == [(0.0, 1.0)]


@given(st.integers(1, 400), st.data())
def test_bounds_are_those_of_clopper_and_pearson(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, trials))
    upper = 1.0 if events == trials else beta.ppf(0.95, events + 1, trials - events)
    lower = 0.0 if events == 0 else beta.ppf(0.05, events, trials - events + 1)
    assert upper_bound(events, trials, 0.05) == pytest.approx(upper, abs=1e-6)
    assert lower_bound(events, trials, 0.05) == pytest.approx(lower, abs=1e-6)


def test_bounds_without_a_trial_say_nothing() -> None:
    assert (lower_bound(0, 0, 0.05), upper_bound(0, 0, 0.05)) == (0.0, 1.0)


@pytest.mark.parametrize("agreement", [0.9, 0.99, 0.999])
def test_as_many_examples_as_needed_are_enough_if_all_agree_and_one_less_is_not(agreement: float) -> None:
    needed = examples_needed(agreement, 0.05)
    for count, early in ((needed - 1, 0.0), (needed, 1.0)):
        perfect = Evidence(np.ones((1, count)), np.ones((1, count), np.bool_), np.array([1.0, 10.0]))
        assert choose(curve(perfect), agreement, 0.05).shares[0] == early
