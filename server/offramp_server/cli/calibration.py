"""Temperatures and thresholds for an early-exit route, from what its stages said: fitted to some of the examples,
judged by others."""

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
class Parts:
    """Positions of the examples that are chosen on, and of those that tell what the choice comes to."""

    chosen_on: Labels
    unseen: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What is proposed, and what it comes to."""

    # One for each stage.
    temperatures: list[float]
    # What was chosen, on the examples that it was chosen on and on the others.
    chosen: Point
    unseen: Point
    # The way from "all defer" to "all leave at once": each choice where it was made, and on the others.
    curve: list[tuple[Point, Point]]
    # Share of right answers among the others: the route's, and each stage's by itself.
    accuracy: float
    stage_accuracies: list[float]
    # Seconds for an item that the reference alone would take.
    reference_cost: float


def calibrate(
    route: EarlyExitRoute, exits: BoundExits, answers: StageAnswers, labels: Labels, wanted: Wanted, parts: Parts
) -> Calibration:
    """An exit's temperature makes its score the chance of agreeing with the reference, the reference's that of being
    right."""
    temperatures = _temperatures(exits, answers, labels, parts.chosen_on)
    scores = np.array([_scores(exits, number, answers, temperatures[number]) for number in range(exits.last)])
    agrees = _agreement(route, exits, answers)
    seen, others = (
        Evidence(scores[:, rows], agrees[:, rows], answers.costs) for rows in (parts.chosen_on, parts.unseen)
    )
    points = curve(seen)
    best = choose(points, wanted.agreement, wanted.delta).thresholds
    chosen = outcome(seen, tuple(map(_short, best, seen.scores)))
    return Calibration(
        temperatures, chosen, outcome(others, chosen.thresholds),
        [(point, outcome(others, point.thresholds)) for point in points],
        _accuracy(others, answers, chosen, labels[parts.unseen], parts.unseen),
        [float((each.argmax(axis=1) == labels)[parts.unseen].mean()) for each in answers.outputs],
        _reference_cost(exits, answers),
    )  # fmt: skip


def halves(count: int, seed: int) -> Parts:
    order = np.random.default_rng(seed).permutation(count)
    return Parts(np.sort(order[: count // 2]), np.sort(order[count // 2 :]))


def _agreement(route: EarlyExitRoute, exits: BoundExits, answers: StageAnswers) -> NDArray[np.bool_]:
    """[exits, N]"""
    tensors = [[Tensor.from_numpy(exits.decides, output)] for output in answers.outputs]
    return np.array(
        [route.agreement.compare(each, tensors[-1], exits.decides, batched=True) for each in tensors[:-1]], np.bool_
    )


def _temperatures(exits: BoundExits, answers: StageAnswers, labels: Labels, rows: Labels) -> list[float]:
    reference = answers.outputs[-1].argmax(axis=1)
    targets = [*[reference] * exits.last, labels]
    return [
        _temperature(exits, number, output[rows], target[rows])
        for number, (output, target) in enumerate(zip(answers.outputs, targets, strict=True))
    ]


def _temperature(exits: BoundExits, number: int, output: Array, target: Labels) -> float:
    logarithms = log_probabilities(output, exits.stages[number].scale)
    known = ~np.isnan(logarithms).any(axis=1)
    return float(f"{fit_temperature(logarithms[known], target[known], SPREAD):.4g}") if known.any() else 1.0


def _scores(exits: BoundExits, number: int, answers: StageAnswers, temperature: float) -> list[float]:
    stage = exits.stages[number]
    tensor = Tensor.from_numpy(stage.decides, answers.outputs[number])
    return judge(tensor, True, stage.score, stage.scale, temperature)[1]


def _short(threshold: float, scores: NDArray[np.float64]) -> float:
    """What people can read, and parts these scores as `threshold` does: of four digits after the point, or as few more
    as it takes."""
    below = scores[scores < threshold].max(initial=-1.0)
    for digits in range(4, 16):
        rounded = math.floor(threshold * 10.0**digits) / 10.0**digits
        if below < rounded <= threshold:
            return rounded
    return threshold


def _accuracy(evidence: Evidence, answers: StageAnswers, chosen: Point, labels: Labels, rows: Labels) -> float:
    left_at = stages_left_at(evidence, chosen.thresholds)
    classes = np.array([output[rows].argmax(axis=1) for output in answers.outputs])
    return float((classes[left_at, np.arange(len(labels))] == labels).mean())


def _reference_cost(exits: BoundExits, answers: StageAnswers) -> float:
    """A segment cannot be run without those before it."""
    return float(answers.costs[exits.stages[-1].start :].sum())
