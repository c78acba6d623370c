"""Is a model as sure as it may be: calibration error, and the temperature that mends it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Labels = NDArray[np.int64]
Floats = NDArray[np.floating]

BINS = 15
# exp(-4) to exp(4): beyond these a temperature only says that the model is always right, or knows nothing.
_LOG_TEMPERATURES = (-4.0, 4.0)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The answers whose confidence is in one interval: how sure they were and how often they were right."""

    confidence: float
    accuracy: float
    count: int


def reliability(probabilities: Floats, labels: Labels, bins: int = BINS) -> list[ReliabilityBin]:
    """Equal-width bins of the highest probability, [N, classes]; empty bins are left out."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(float(confidence[chosen].mean()), float(right[chosen].mean()), int(chosen.sum()))
        for chosen in (place == index for index in range(bins))
        if chosen.any()
    ]


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int = BINS) -> float:
    """Mean distance between confidence and accuracy over bins, weighted by their size (Naeini et al., 2015)."""
    found = reliability(probabilities, labels, bins)
    return sum(abs(each.confidence - each.accuracy) * each.count for each in found) / len(labels)


def fit_temperature(logits: Floats, labels: Labels, spread: float = np.inf) -> float:
    """What to divide the logits by so that their likelihood is highest (Guo et al., On Calibration, 2017).

    With `spread`, a temperature far from 1 has to be worth it: the logarithm has a normal prior of this standard
    deviation (maximum a posteriori). Otherwise a few examples that are all right make the model certain of everything.
    """

    def loss(log_temperature: float) -> float:
        scores = log_softmax(logits / np.exp(log_temperature), axis=1)
        prior = (log_temperature / spread) ** 2 / 2
        return (prior - float(scores[np.arange(len(labels)), labels].sum())) / len(labels)

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def calibrated_by_halves(logits: Floats, labels: Labels, seed: int = 0) -> NDArray[np.float64]:
    """Probabilities in which each half of the examples is scaled by the temperature that fits the other half.

    So the calibration error after scaling is measured on examples that the temperature has not seen, without a data set
    of its own for it. A single example has no other half, and stays as it is.
    """
    if len(labels) == 1:
        return np.asarray(softmax(logits.astype(np.float64), axis=1))
    halves = np.random.default_rng(seed).permutation(len(labels)) % 2 == 0
    probabilities = np.empty(logits.shape, np.float64)
    for half in (halves, ~halves):
        probabilities[half] = softmax(logits[half] / fit_temperature(logits[~half], labels[~half]), axis=1)
    return probabilities
