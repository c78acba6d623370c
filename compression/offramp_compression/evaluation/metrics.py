"""How often a classifier is right, as a whole and class by class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix as count_pairs
from sklearn.metrics import roc_auc_score

from offramp_compression.evaluation.bootstrap import Bootstrap, Estimate, Rows
from offramp_compression.evaluation.calibration import (
    Floats,
    Labels,
    ReliabilityBin,
    calibrated_by_halves,
    expected_calibration_error,
    fit_temperature,
    reliability,
)

# Sorting every class's scores for every resample is what takes the time of an evaluation.
_AUC_RESAMPLES = 100


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class against the others. A ratio is NaN where it has no denominator: no example, or no such answer."""

    name: str
    precision: float
    recall: float
    f1: float
    examples: int


@dataclass(frozen=True, slots=True)
class Quality:
    """What a model's logits on labelled examples are worth."""

    examples: int
    accuracy: Estimate
    precision_macro: Estimate
    recall_macro: Estimate
    f1_macro: Estimate
    # One class against the rest, the mean over classes; NaN where a class has no example.
    roc_auc_macro: Estimate
    negative_log_likelihood: Estimate
    # With the logits as they are, and after temperature scaling on the other half of the examples.
    calibration_error: Estimate
    calibration_error_scaled: Estimate
    temperature: float
    # Of the answers with those of a reference on the same examples; None without one.
    agreement: Estimate | None
    classes: tuple[ClassMetrics, ...]
    # [classes, classes]: row is the label, column the answer.
    confusion: NDArray[np.int64]
    reliability: tuple[ReliabilityBin, ...]
    reliability_scaled: tuple[ReliabilityBin, ...]


def quality(
    logits: Floats,
    labels: Labels,
    class_names: Sequence[str],
    reference: Floats | None = None,
    bootstrap: Bootstrap | None = None,
) -> Quality:
    """Measure ``logits``, [N, classes], against ``labels``, [N], and against the logits of a reference, if given."""
    intervals = bootstrap or Bootstrap()
    answers = logits.argmax(axis=1)
    raw, scaled = softmax(logits.astype(np.float64), axis=1), calibrated_by_halves(logits, labels)
    count = len(class_names)

    def macro(column: int) -> Estimate:
        def statistic(rows: Rows) -> float:
            return _macro(_confusion(labels[rows], answers[rows], count))[column]

        return intervals.estimate(len(labels), statistic)

    def calibration(probabilities: Floats) -> Estimate:
        return intervals.estimate(
            len(labels), lambda rows: expected_calibration_error(probabilities[rows], labels[rows])
        )

    surprise = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    confusion = count_pairs(labels, answers, labels=range(count))
    return Quality(
        examples=len(labels),
        accuracy=intervals.mean(answers == labels),
        precision_macro=macro(0),
        recall_macro=macro(1),
        f1_macro=macro(2),
        roc_auc_macro=_roc_auc(raw, labels, count, intervals),
        negative_log_likelihood=intervals.mean(surprise),
        calibration_error=calibration(raw),
        calibration_error_scaled=calibration(scaled),
        temperature=fit_temperature(logits, labels),
        agreement=None if reference is None else intervals.mean(answers == reference.argmax(axis=1)),
        classes=_by_class(confusion, class_names),
        confusion=confusion,
        reliability=tuple(reliability(raw, labels)),
        reliability_scaled=tuple(reliability(scaled, labels)),
    )


def _confusion(labels: Labels, answers: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    # A tenth of the time of scikit-learn's, which checks its arguments, and this runs for every resample.
    return np.bincount(labels * count + answers, minlength=count * count).reshape(count, count)


def _rates(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of every class; NaN where there is nothing to divide by."""
    right = confusion.diagonal().astype(float)
    answered, present = confusion.sum(axis=0), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return right / answered, right / present, 2 * right / (answered + present)


def _macro(confusion: NDArray[np.int64]) -> tuple[float, float, float]:
    """Means over the classes that have examples; the precision of a class that is never answered is 0."""
    present = confusion.sum(axis=1) > 0
    precision, recall, f1 = (np.nan_to_num(rate)[present].mean() for rate in _rates(confusion))
    return float(precision), float(recall), float(f1)


def _by_class(confusion: NDArray[np.int64], class_names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    columns = zip(class_names, *_rates(confusion), confusion.sum(axis=1), strict=True)
    return tuple(
        ClassMetrics(name, float(precision), float(recall), float(f1), int(examples))
        for name, precision, recall, f1, examples in columns
    )


def _roc_auc(probabilities: Floats, labels: Labels, count: int, intervals: Bootstrap) -> Estimate:
    """Area under the receiver operating characteristic (Hanley & McNeil, 1982), one against the rest."""

    def area(rows: Rows) -> float:
        chosen = labels[rows]
        if len(np.unique(chosen)) < count:
            return float("nan")
        scores = probabilities[rows]
        with warnings.catch_warnings():
            # Rows that do not add up to exactly 1 in single precision.
            warnings.simplefilter("ignore", UserWarning)
            if count == 2:
                return float(roc_auc_score(chosen, scores[:, 1]))
            return float(roc_auc_score(chosen, scores, multi_class="ovr", labels=range(count)))

    return Bootstrap(min(intervals.resamples, _AUC_RESAMPLES), intervals.level, intervals.seed).estimate(
        len(labels), area
    )
