"""`offramp calibrate`: what is chosen on one half of the examples and measured on the other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.exit_stages import BoundExits
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Endpoint, TensorFacts
from offramp_server.cli.calibration import Calibration, Wanted, calibrate, halves
from offramp_server.cli.stage_answers import StageAnswers, joined

CLASSES, EXAMPLES = 4, 4000
# How much too sure the exits are.
OVERCONFIDENCE = 3.0


def bound(exits: int) -> tuple[EarlyExitRoute, BoundExits]:
    stages = [Stage(Target(f"exit{number}"), 0.5) for number in range(exits)]
    route = EarlyExitRoute((*stages, Stage(Target("reference"))))
    image = TensorFacts("image", "FP32", (8,))
    endpoint = Endpoint((image,), (TensorFacts("logits", "FP32", (CLASSES,)),), 16)
    return route, route.bind(dict.fromkeys(route.targets, endpoint)).exits


def said(exits: int, seed: int = 0) -> tuple[StageAnswers, NDArray[np.int64]]:
    """A reference that is right nine times in ten, and exits that know how likely each of its answers is, but say it
    too surely."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, EXAMPLES)
    outputs = []
    reference = np.where(draw.uniform(size=EXAMPLES) < 0.9, labels, (labels + 1) % CLASSES)
    for _ in range(exits):
        chances = draw.dirichlet(np.full(CLASSES, 0.3), EXAMPLES)
        # The reference's class is drawn from what the exit believes.
        place = np.array([draw.choice(CLASSES, p=chance) for chance in chances])
        logits = np.log(np.take_along_axis(chances, _swapped(place, reference), axis=1) + 1e-12)
        outputs.append((OVERCONFIDENCE * logits).astype(np.float32))
    outputs.append((5 * np.eye(CLASSES)[reference]).astype(np.float32))
    costs = np.array([*np.full(exits, 0.001), 0.020])
    return StageAnswers(list(outputs), costs), labels


def _swapped(place: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Orders of the classes in which column `wanted` holds what was in column `place`."""
    order = np.tile(np.arange(CLASSES), (len(place), 1))
    rows = np.arange(len(place))
    order[rows, wanted], order[rows, place] = place, wanted
    return order


def run(exits: int = 1, agreement: float = 0.98) -> Calibration:
    answers, labels = said(exits)
    return calibrate(*bound(exits), answers, labels, Wanted(agreement, 0.05), halves(EXAMPLES, seed=0))


@pytest.mark.parametrize("exits", [1, 2])
def test_the_choice_keeps_its_agreement_on_examples_that_it_has_not_seen(exits: int) -> None:
    found = run(exits)
    assert found.unseen.agreement >= 0.975
    assert found.unseen.shares[-1] < 0.9
    assert found.unseen.cost < found.reference_cost


def test_a_temperature_makes_an_exit_as_sure_as_it_agrees() -> None:
    found = run()
    assert found.temperatures[0] == pytest.approx(OVERCONFIDENCE, rel=0.1)


def test_both_halves_are_used_once() -> None:
    found = run()
    assert found.chosen.examples + found.unseen.examples == EXAMPLES


def test_the_same_seed_gives_the_same_choice() -> None:
    assert run().chosen == run().chosen


def test_more_agreement_costs_more() -> None:
    assert run(agreement=0.995).chosen.cost > run(agreement=0.9).chosen.cost


def test_accuracies_are_of_the_half_that_nothing_was_chosen_on() -> None:
    found = run()
    assert found.stage_accuracies[-1] == pytest.approx(0.9, abs=0.03)
    assert found.accuracy == pytest.approx(found.stage_accuracies[-1], abs=0.03)


def test_an_exit_that_says_nothing_leaves_everything_to_the_reference() -> None:
    answers, labels = said(1)
    answers.outputs[0][:] = np.nan
    found = calibrate(*bound(1), answers, labels, Wanted(0.9, 0.05), halves(EXAMPLES, seed=0))
    assert found.unseen.shares == (0.0, 1.0)


def test_an_exit_that_always_agrees_gets_a_threshold_that_its_scores_reach() -> None:
    answers, labels = said(1)
    answers.outputs[0][:] = 5 * answers.outputs[1]
    found = calibrate(*bound(1), answers, labels, Wanted(0.99, 0.05), halves(EXAMPLES, seed=0))
    assert found.unseen.shares == (1.0, 0.0)
    assert found.chosen.thresholds[0] <= 1


def test_the_curve_is_measured_where_nothing_was_chosen() -> None:
    parts = halves(EXAMPLES, seed=1)
    answers, labels = said(1)
    found = calibrate(*bound(1), answers, labels, Wanted(0.98, 0.05), parts)
    assert {seen.examples for seen, _ in found.curve} == {len(parts.chosen_on)}
    assert {unseen.examples for _, unseen in found.curve} == {len(parts.unseen)}
    assert all(seen.thresholds == unseen.thresholds for seen, unseen in found.curve)


def test_sets_of_examples_are_joined_with_what_each_of_them_cost() -> None:
    one = StageAnswers([np.zeros((3, 2)), np.zeros((3, 2))], np.array([1.0, 4.0]))
    other = StageAnswers([np.ones((1, 2)), np.ones((1, 2))], np.array([5.0, 8.0]))
    both = joined([one, other])
    assert [output[:, 0].tolist() for output in both.outputs] == [[0, 0, 0, 1]] * 2
    assert both.costs.tolist() == [2.0, 5.0]
