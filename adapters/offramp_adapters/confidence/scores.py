"""How sure an answer is: a number from 0 to 1, higher is surer.

    max_probability   of the softmax (Hendrycks and Gimpel, "A Baseline for Detecting Misclassified Examples", 2017)
    margin            between the highest probability and the one after it
    entropy           1 - H / log C, of C classes (Teerapittayanon et al., "BranchyNet", 2016)

all of probabilities at the exit's own temperature (Guo et al., "On Calibration of Modern Neural Networks", 2017).

This runs for every request on the front end's one thread. For few numbers plain Python is several times faster than
arrays; beyond that it is the other way round.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from open_inference.tensor import Array, Tensor

from offramp_adapters.routes.deciding import LOGITS, Scale

SoftmaxScore: TypeAlias = Literal["max_probability", "margin", "entropy"]

# Numbers up to which plain Python is faster, as measured with 2 to 256 classes and 1 to 8 items.
_FEW = 96
_NATIVE = MappingProxyType({"FP32": "f", "FP64": "d"})
_NAN = float("nan")


def judge(
    tensor: Tensor, batched: bool, kind: SoftmaxScore, scale: Scale, temperature: float = 1.0
) -> tuple[list[int | None], list[float]]:
    """The most probable class of each item, and how sure that is.

    `tensor` is [items, classes], or [classes] if it is not `batched`. An item with NaN or without any probability has
    no class and the score NaN. Of equal classes the first one is it. A single class is certain.
    """
    classes = tensor.shape[-1]
    items = tensor.shape[0] if batched else 1
    if not classes:
        return [None] * items, [_NAN] * items
    native = _NATIVE.get(tensor.datatype)
    if native is None or items * classes > _FEW:
        return _judge_array(tensor.numpy().reshape(items, classes), kind, scale, temperature)
    flat: list[float] = memoryview(tensor.data).cast(native).tolist()  # type: ignore[call-overload]
    if items == 1:
        best, score = _judge_row(flat, kind, scale, temperature)
        return [best], [score]
    judged = [
        _judge_row(flat[at : at + classes], kind, scale, temperature) for at in range(0, items * classes, classes)
    ]
    return [best for best, _ in judged], [score for _, score in judged]


def _judge_row(row: list[float], kind: SoftmaxScore, scale: Scale, temperature: float) -> tuple[int | None, float]:
    # Of what was answered: rounding on the way to probabilities makes neighbours equal.
    peak = max(row)
    best = row.index(peak)
    if scale != LOGITS:
        row = [_logarithm(value) for value in row]
        peak = row[best]
    shifted = [(value - peak) / temperature for value in row]
    # In proportion to the probabilities; the highest is 1.
    parts = [math.exp(value) for value in shifted]
    total = sum(parts)
    if math.isnan(total):
        return None, _NAN
    if kind == "max_probability":
        return best, 1 / total
    if kind == "margin":
        del parts[best]
        return best, (1 - max(parts, default=0.0)) / total
    return best, _certainty(shifted, parts, total)


def _certainty(shifted: list[float], parts: list[float], total: float) -> float:
    if len(parts) == 1:
        return 1.0
    mean = sum([part * value for part, value in zip(parts, shifted, strict=True) if part > 0]) / total
    return _unit(1 - (math.log(total) - mean) / math.log(len(parts)))


def _logarithm(probability: float) -> float:
    if probability > 0:
        return math.log(probability)
    return -math.inf if probability == 0 else _NAN


def _unit(value: float) -> float:
    """Rounding must not carry a score over the edge: a threshold above 1 is never reached."""
    return min(1.0, max(0.0, value))


def _judge_array(
    values: Array, kind: SoftmaxScore, scale: Scale, temperature: float
) -> tuple[list[int | None], list[float]]:
    """As `_judge_row` does, of [items, classes]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = values.astype(np.float64)
        if scale != LOGITS:
            logits = np.log(logits)
        shifted = logits - logits.max(axis=1, keepdims=True)
        shifted /= temperature
        parts = np.exp(shifted)
        totals = parts.sum(axis=1)
        scores = _score_array(shifted, parts, totals, kind)
    best: list[int | None] = values.argmax(axis=1).tolist()
    for row in np.flatnonzero(np.isnan(totals)).tolist():
        best[row] = None
    return best, scores.tolist()


def _score_array(shifted: Array, parts: Array, totals: Array, kind: SoftmaxScore) -> Array:
    """[items]"""
    classes = parts.shape[1]
    if kind == "max_probability" or classes == 1:
        return np.asarray(1 / totals)
    if kind == "margin":
        second = np.partition(parts, classes - 2, axis=1)[:, -2]
        return np.asarray((1 - second) / totals)
    means = np.where(parts > 0, parts * shifted, 0.0).sum(axis=1) / totals
    return np.asarray(np.clip(1 - (np.log(totals) - means) / math.log(classes), 0.0, 1.0))
