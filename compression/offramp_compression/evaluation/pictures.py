"""The pictures of a report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from offramp_compression.evaluation.calibration import ReliabilityBin
from offramp_compression.evaluation.evaluation import Evaluation

# A matrix of more classes has no room for its numbers or its names.
_MOST_NAMED_CLASSES = 20
# With ten colours these tell thirty models apart.
_MARKERS = ("o", "s", "^")


def frontier(evaluations: Sequence[Evaluation], column: int) -> str:
    """Accuracy against the time for one item at the ``column``-th batch size; the line joins what nothing beats."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, each in enumerate(evaluations):
        time, accuracy = _milliseconds(each, column), each.quality.accuracy
        error = [[accuracy.value - accuracy.low], [accuracy.high - accuracy.value]]
        marker = _MARKERS[number // 10 % len(_MARKERS)]
        axes.errorbar(time, accuracy.value, yerr=_drawable(error), fmt=marker, capsize=3, label=each.name)
    best = unbeaten(evaluations, column)
    axes.plot([_milliseconds(each, column) for each in best], [each.quality.accuracy.value for each in best],
              color="0.6", linewidth=1, zorder=0)  # fmt: skip
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel(f"milliseconds for one item, in batches of {evaluations[0].timings[column].batch_size}")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    # Beside the picture: models that are alike lie on top of each other, and so would their names.
    figure.legend(loc="outside right upper", fontsize=8)
    return _svg(figure)


def unbeaten(evaluations: Sequence[Evaluation], column: int) -> list[Evaluation]:
    """The models that no other is both as fast as and more accurate than, fastest first (the Pareto frontier)."""
    best: list[Evaluation] = []
    for each in sorted(evaluations, key=lambda each: (_milliseconds(each, column), -each.quality.accuracy.value)):
        if not best or each.quality.accuracy.value > best[-1].quality.accuracy.value:
            best.append(each)
    return best


def confusion(evaluation: Evaluation) -> str:
    """Labels down, answers across; the shade is the share of the label's examples."""
    matrix = evaluation.quality.confusion
    names = [each.name for each in evaluation.quality.classes]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(4 + 0.3 * len(names), 10)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _MOST_NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for (row, column), count in np.ndenumerate(matrix):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=shade)
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    return _svg(figure)


def reliability(evaluation: Evaluation) -> str:
    """How often answers of a confidence are right, before and after temperature scaling, beside the diagonal."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as sure as right")
    _curve(axes, evaluation.quality.reliability, "as trained")
    _curve(axes, evaluation.quality.reliability_scaled, "temperature-scaled")
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return _svg(figure)


def _curve(axes: Any, bins: Sequence[ReliabilityBin], label: str) -> None:
    axes.plot(
        [each.confidence for each in bins], [each.accuracy for each in bins], marker="o", markersize=3, label=label
    )


def _milliseconds(evaluation: Evaluation, column: int) -> float:
    timing = evaluation.timings[column]
    return timing.seconds.value / timing.batch_size * 1e3


def _drawable(error: list[list[float]]) -> list[list[float]] | None:
    """matplotlib draws no bar of NaN, but warns of it."""
    return None if np.isnan(error).any() else error


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Without a date, the same figures make the same file.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
