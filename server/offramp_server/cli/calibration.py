"""Temperatures and thresholds for an early-exit route, from what its stages said: fitted on one half of the examples,
judged on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from offramp_adapters.confidence.scores import judge
from offramp_adapters.confidence.temperature import log_probabilities
from offramp_adapters.confidence.thresholds import Evidence, Point, choose, curve, outcome, stages_left_at
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.exit_stages import BoundExits
from offramp_compression.evaluation.calibration import fit_temperature
from open_inference.tensor import Array, Tensor

from offramp_server.cli.stage_answers import StageAnswers

Labels = NDArray[np.int64]

# Of the logarithm of a temperature before anything was seen: where an exit has always agreed, any small one would do.
SPREAD = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the thresholds should reach, and how surely on the examples they are chosen on."""

    agreement: float
    delta: float


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What is proposed, and what it comes to."""

    # One for each stage.
    temperatures: list[float]
    # What was chosen, on the examples that it was chosen on and on the others.
    chosen: Point
    unseen: Point
    # The way from "all defer" to "all leave at once", chosen on the one half and measured on the other.
    curve: list[Point]
    # Share of right answers among the others: the route's, and each stage's by itself.
    accuracy: float
    stage_accuracies: list[float]
    # Seconds for an item that the reference alone would take.
    reference_cost: float


def calibrate(
    route: EarlyExitRoute, exits: BoundExits, answers: StageAnswers, labels: Labels, wanted: Wanted, seed: int
) -> Calibration:
    """Halves are drawn by `seed`. An exit's temperature makes its score the chance of agreeing with the reference, the
    reference's that of being right."""
    first, second = _halves(len(labels), seed)
    agrees = _agreement(route, exits, answers)
    reference = answers.outputs[-1].argmax(axis=1)
    targets = [*[reference] * exits.last, labels]
    temperatures = [
        _temperature(exits, number, output[first], target[first])
        for number, (output, target) in enumerate(zip(answers.outputs, targets, strict=True))
    ]
    scores = np.array([_scores(exits, number, answers, temperatures[number]) for number in range(exits.last)])
    fitted, others = (Evidence(scores[:, half], agrees[:, half], answers.costs) for half in (first, second))
    points = curve(fitted)
    chosen = outcome(fitted, tuple(map(_rounded_up, choose(points, wanted.agreement, wanted.delta).thresholds)))
    unseen = outcome(others, chosen.thresholds)
    stage_accuracies = [float((each[second].argmax(axis=1) == labels[second]).mean()) for each in answers.outputs]
    return Calibration(
        temperatures, chosen, unseen, [outcome(others, point.thresholds) for point in points],
        _accuracy(others, answers, chosen, labels[second], second), stage_accuracies,
        _reference_cost(exits, answers),
    )  # fmt: skip


def _halves(count: int, seed: int) -> tuple[Labels, Labels]:
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def _agreement(route: EarlyExitRoute, exits: BoundExits, answers: StageAnswers) -> NDArray[np.bool_]:
    """[exits, N]"""
    tensors = [[Tensor.from_numpy(exits.decides, output)] for output in answers.outputs]
    return np.array(
        [route.agreement.compare(each, tensors[-1], exits.decides, batched=True) for each in tensors[:-1]], np.bool_
    )


def _temperature(exits: BoundExits, number: int, output: Array, target: Labels) -> float:
    logarithms = log_probabilities(output, exits.stages[number].scale)
    known = ~np.isnan(logarithms).any(axis=1)
    return float(f"{fit_temperature(logarithms[known], target[known], SPREAD):.4g}") if known.any() else 1.0


def _scores(exits: BoundExits, number: int, answers: StageAnswers, temperature: float) -> list[float]:
    stage = exits.stages[number]
    tensor = Tensor.from_numpy(stage.decides, answers.outputs[number])
    return judge(tensor, True, stage.score, stage.scale, temperature)[1]


def _rounded_up(threshold: float) -> float:
    """To what people read, at least four digits and three of what is missing to 1; up, so that no item more leaves."""
    if threshold >= 1:
        return threshold
    scale = 10.0 ** max(4, 3 - math.ceil(math.log10(1 - threshold)))
    rounded = math.ceil(threshold * scale) / scale
    return rounded if rounded < 1 else threshold


def _accuracy(evidence: Evidence, answers: StageAnswers, chosen: Point, labels: Labels, half: Labels) -> float:
    left_at = stages_left_at(evidence, chosen.thresholds)
    classes = np.array([output[half].argmax(axis=1) for output in answers.outputs])
    return float((classes[left_at, np.arange(len(labels))] == labels).mean())


def _reference_cost(exits: BoundExits, answers: StageAnswers) -> float:
    """A segment cannot be run without those before it."""
    return float(answers.costs[exits.stages[-1].start :].sum())
