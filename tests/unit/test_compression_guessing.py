"""A model that has learnt nothing is told from one that has."""

from __future__ import annotations

import numpy as np
import pytest
from offramp_compression.evaluation.guessing import guessing

LABELS = np.array([0] * 60 + [1] * 40)


@pytest.mark.parametrize(
    ("accuracy", "beaten"),
    [
        (0.10, False),
        (0.60, False),
        # By chance, one guesser in five does as well.
        (0.64, False),
        # By chance, two in a hundred.
        (0.70, True),
        (1.00, True),
    ],
)
def test_what_a_guesser_would_reach_by_chance_is_no_proof(accuracy: float, beaten: bool) -> None:
    assert guessing(accuracy, LABELS).beaten is beaten


def test_few_examples_show_less_than_many() -> None:
    assert not guessing(0.7, LABELS[::10]).beaten
    assert guessing(0.7, np.tile(LABELS, 10)).beaten


def test_a_class_that_is_always_right_because_there_is_no_other_proves_nothing() -> None:
    assert not guessing(1.0, np.zeros(50, np.int64)).beaten


def test_it_says_both_figures_and_what_to_do() -> None:
    found = guessing(0.55, LABELS)
    assert "student is right on 55.0% of 100 examples" in found.warning("student")
    assert "would be on 60.0%" in found.warning("student")
    assert "lower the learning rate" in found.warning("student")
    assert found.metrics() == {"majority_accuracy": 0.6, "better_than_guessing": 0.0}
