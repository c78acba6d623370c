"""The numbers of an ensemble, fitted to what members with known strengths say."""

from __future__ import annotations

import numpy as np
import pytest
from offramp_adapters.confidence.temperature import log_probabilities
from offramp_adapters.routes import fitting
from offramp_adapters.routes.ensemble import Combine, EnsembleRoute, Member
from offramp_adapters.routes.plan import Target

RANDOM = np.random.default_rng(5)
CLASSES = 4
ROUTE = EnsembleRoute(tuple(Member(Target(name)) for name in "abc"), quorum=2)


def says(labels: np.ndarray, strength: float, seed: int, certainty: float = 1.0) -> np.ndarray:
    """Log-probabilities of a member that sees the label through noise, and is as sure as it may be at certainty 1."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), CLASSES))
    # The likelihood ratio of a unit normal with mean `strength` to one with mean 0.
    seen = strength * np.eye(CLASSES)[labels] + noise
    return log_probabilities(certainty * strength * seen, "logits")


def members(labels: np.ndarray, *strengths: float, certainty: float = 1.0) -> np.ndarray:
    return np.stack([says(labels, each, seed, certainty) for seed, each in enumerate(strengths)])


def labels(count: int = 2000) -> np.ndarray:
    return np.random.default_rng(9).integers(0, CLASSES, count)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_probabilities(logits, "logits"))


@pytest.mark.parametrize("certainty", [0.5, 1.0, 3.0])
def test_a_member_that_is_too_sure_gets_the_temperature_that_makes_up_for_it(certainty: float) -> None:
    truth = labels()
    assert fitting.fit_temperature(says(truth, 2.0, 1, certainty), truth) == pytest.approx(certainty, rel=0.1)


def test_a_few_examples_that_are_all_right_do_not_make_a_member_certain() -> None:
    truth = labels(5)
    assert fitting.fit_temperature(says(truth, 9.0, 1), truth) > 0.2


def test_no_other_weights_of_the_mean_have_a_higher_likelihood() -> None:
    truth = labels()
    said = members(truth, 2.0, 1.0, 1.5)
    weights = fitting.fit_mixture(said, truth)
    assert weights.sum() == pytest.approx(1)

    def loss(shares: np.ndarray) -> float:
        return fitting.negative_log_likelihood(np.einsum("m,mic->ic", shares, np.exp(said)), truth)

    best = loss(weights)
    for other in RANDOM.dirichlet(np.ones(3), size=200):
        assert best <= loss(other) + 1e-6


def test_a_member_that_adds_nothing_gets_no_weight_and_the_quorum_stays_possible() -> None:
    truth = labels()
    said = members(truth, 3.0, 3.0, 0.0)
    # What knows nothing but says it loudly.
    said[2] = log_probabilities(20 * RANDOM.normal(size=(len(truth), CLASSES)), "logits")
    # Its temperature would repair that.
    weights = fitting.fit_mixture(said, truth)
    assert weights[2] < 0.05
    sure = fitting.fit(ROUTE, "weighted_mean", np.stack([said[0], said[0], said[2]]), truth)
    assert len(sure.taking_part) >= (sure.quorum or 0)


def test_votes_weigh_by_the_log_odds_of_being_right() -> None:
    truth = np.zeros(98, np.int64)
    said = np.log(np.full((2, 98, 3), 0.1))
    # Right 74 and 49 times of 98: with one more of each, 75 to 25 and 50 to 50; chance is 1 to 2.
    for member, right in enumerate((74, 49)):
        said[member, :right, 0] = said[member, right:, 1] = np.log(0.8)
    np.testing.assert_allclose(fitting.fit_votes(said, truth), [1.0, np.log(2) / np.log(6)])


def test_a_stack_learns_that_a_member_mixes_two_classes_up() -> None:
    truth = labels()
    said = members(truth, 2.0)
    mixed_up = said[:, :, [1, 0, 2, 3]]
    stack = fitting.fit_stack(mixed_up, truth)
    route = EnsembleRoute((Member(Target("a")),), "stack", stack=stack)
    alone = fitting.accuracy(np.exp(mixed_up[0]), truth)
    assert fitting.accuracy(fitting.answer(route, mixed_up), truth) > alone + 0.2


def test_a_stack_of_hardly_any_examples_is_the_geometric_mean_of_its_members() -> None:
    truth = labels(2)
    stack = fitting.fit_stack(members(truth, 2.0, 2.0), truth)
    said = members(labels(50), 1.0, 1.0)
    route = EnsembleRoute((Member(Target("a")), Member(Target("b"))), "stack", stack=stack)
    np.testing.assert_allclose(fitting.answer(route, said), softmax(said.mean(axis=0)), atol=0.05)


@pytest.mark.parametrize(("how", "gain"), [("mean", 1.0), ("weighted_mean", 0.8), ("stack", 0.8)])
def test_what_is_fitted_is_better_on_examples_that_it_has_not_seen(how: Combine, gain: float) -> None:
    truth = labels()
    said = members(truth, 2.5, 0.5, 1.5, certainty=4.0)
    before = fitting.negative_log_likelihood(fitting.answer(ROUTE, said), truth)
    held_out = fitting.cross_validated(ROUTE, how, said, truth, folds=4)
    assert fitting.negative_log_likelihood(held_out, truth) < gain * before
    np.testing.assert_allclose(held_out.sum(axis=1), 1, rtol=1e-6)


def test_examples_are_judged_by_what_was_fitted_without_them() -> None:
    # Every member is wrong about everything, in a way that only the labels themselves would tell.
    truth = labels(200)
    said = np.tile(log_probabilities(RANDOM.normal(size=(200, CLASSES)), "logits"), (3, 1, 1))
    held_out = fitting.cross_validated(ROUTE, "stack", said, truth, folds=5)
    assert fitting.negative_log_likelihood(held_out, truth) > 0.9 * np.log(CLASSES)


def test_the_same_examples_give_the_same_numbers_in_any_order() -> None:
    truth = labels(300)
    said = members(truth, 2.0, 1.0, 1.5)
    order = RANDOM.permutation(300)
    one, two = (fitting.fit(ROUTE, "weighted_mean", said[:, i], truth[i]) for i in (np.arange(300), order))
    for first, second in zip(one.members, two.members, strict=True):
        assert first.weight == pytest.approx(second.weight, abs=1e-4)
        assert first.temperature == pytest.approx(second.temperature, rel=1e-3)
    assert fitting.fit(ROUTE, "weighted_mean", said, truth) == one
