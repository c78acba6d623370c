"""What a model is worth: figures against ones worked out by hand or by scikit-learn, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from offramp_compression.evaluation.bootstrap import Bootstrap
from offramp_compression.evaluation.calibration import (
    calibrated_by_halves,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from offramp_compression.evaluation.metrics import Quality, quality
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

FEW = Bootstrap(resamples=50)


def drawn(count: int = 400, classes: int = 3, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax at ``temperature`` is the truth that the labels are drawn from."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)) * 2
    chances = softmax(logits / temperature, axis=1)
    labels = np.asarray([random.choice(classes, p=chance) for chance in chances])
    return logits, labels


def measured(logits: np.ndarray, labels: np.ndarray, **options: np.ndarray) -> Quality:
    names = [f"class {index}" for index in range(logits.shape[1])]
    return quality(logits, labels, names, bootstrap=FEW, **options)


def test_figures_are_those_of_scikit_learn() -> None:
    logits, labels = drawn()
    found = measured(logits, labels)
    answers = logits.argmax(1)
    expected = precision_recall_fscore_support(labels, answers, average="macro")
    assert found.accuracy.value == pytest.approx((answers == labels).mean())
    assert (found.precision_macro.value, found.recall_macro.value, found.f1_macro.value) == pytest.approx(expected[:3])
    area = roc_auc_score(labels, softmax(logits, axis=1), multi_class="ovr")
    assert found.roc_auc_macro.value == pytest.approx(area)
    by_class = precision_recall_fscore_support(labels, answers)
    assert [each.f1 for each in found.classes] == pytest.approx(by_class[2])
    assert [each.examples for each in found.classes] == list(by_class[3])


def test_the_confusion_matrix_has_a_row_for_each_label() -> None:
    logits = np.eye(3)[[0, 1, 1, 2]]
    found = measured(logits, np.asarray([0, 0, 1, 2]))
    assert found.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_a_class_without_examples_has_no_recall_and_leaves_the_means_alone() -> None:
    logits = np.eye(3)[[0, 1, 0, 1]] * 9.0
    found = measured(logits, np.asarray([0, 1, 0, 1]))
    assert math.isnan(found.classes[2].recall)
    assert found.f1_macro.value == 1.0
    assert math.isnan(found.roc_auc_macro.value)


def test_two_classes_have_the_area_of_the_second_ones_score() -> None:
    logits, labels = drawn(classes=2)
    area = roc_auc_score(labels, softmax(logits, axis=1)[:, 1])
    assert measured(logits, labels).roc_auc_macro.value == pytest.approx(area)


def test_agreement_is_with_the_references_answers_not_with_the_labels() -> None:
    logits, labels = drawn()
    other = np.roll(logits, 1, axis=1)
    assert measured(logits, labels, reference=logits).agreement.value == 1.0  # type: ignore[union-attr]
    assert measured(logits, labels, reference=other).agreement.value == 0.0  # type: ignore[union-attr]
    assert measured(logits, labels).agreement is None


def test_the_temperature_that_the_labels_were_drawn_with_is_found() -> None:
    logits, labels = drawn(count=20_000, temperature=2.5)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.08)


def test_scaling_mends_an_overconfident_model_on_examples_the_temperature_has_not_seen() -> None:
    logits, labels = drawn(count=4000, temperature=3.0)
    before = expected_calibration_error(softmax(logits, axis=1), labels)
    after = expected_calibration_error(calibrated_by_halves(logits, labels), labels)
    assert before > 0.15
    assert after < before / 3


def test_a_single_example_is_measured_without_being_scaled() -> None:
    logits = np.asarray([[2.0, 0.0]])
    np.testing.assert_allclose(calibrated_by_halves(logits, np.asarray([0])), softmax(logits, axis=1))
    assert measured(logits, np.asarray([0])).accuracy.value == 1.0


def test_a_model_that_is_always_right_and_sure_of_it_has_no_calibration_error() -> None:
    sure = np.eye(2)[[0, 1, 1]]
    assert expected_calibration_error(sure, np.asarray([0, 1, 1])) == 0.0
    assert fit_temperature(sure * 50, np.asarray([0, 1, 1])) > 0


def test_calibration_error_of_two_bins_by_hand() -> None:
    # Three answers at 0.9, of which one is wrong; one at 0.6, which is right.
    probabilities = np.asarray([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    labels = np.asarray([0, 0, 1, 0])
    assert [each.count for each in reliability(probabilities, labels)] == [1, 3]
    expected = (3 * abs(0.9 - 2 / 3) + 1 * abs(0.6 - 1)) / 4
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide_on_either_side() -> None:
    values = (np.random.default_rng(1).random(1000) < 0.3).astype(float)
    estimate = Bootstrap(resamples=2000).mean(values)
    error = values.std() / math.sqrt(len(values))
    assert estimate.value == values.mean()
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.3 * error)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.3 * error)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(50.0)
    assert FEW.mean(values) == FEW.mean(values)
    assert FEW.mean(values) != Bootstrap(resamples=50, seed=1).mean(values)


def test_without_resamples_there_is_a_figure_and_no_interval() -> None:
    estimate = Bootstrap(resamples=0).mean(np.asarray([1.0, 2.0]))
    assert estimate.value == 1.5
    assert math.isnan(estimate.low)


def test_a_statistic_that_is_mostly_undefined_has_no_interval() -> None:
    estimate = FEW.estimate(10, lambda rows: 1.0 if len(set(rows)) == 10 else math.nan)
    assert estimate.value == 1.0
    assert math.isnan(estimate.high)
