"""What each exit of a network is worth, and what it costs to get there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.evaluation import flops
from offramp_compression.evaluation.predict import predict_exits
from offramp_compression.exits.network import MultiExit
from offramp_compression.exits.segments import segments
from offramp_compression.network import Network


@dataclass(frozen=True, slots=True)
class ExitMeasure:
    """`module` is where the exit is, "" for the network's own answer; `agreement` is with that answer.

    `flops` are those of one example up to and with this exit.
    """

    module: str
    accuracy: float
    agreement: float
    flops: int


def measure_exits(network: Network, data: Dataset) -> list[ExitMeasure]:
    """Every exit, first to last. Raises ModelError for a network without exits, ExportError if it cannot be cut."""
    module = network.module
    if not isinstance(module, MultiExit):
        raise ModelError("the network has no exits; attach some first (offramp attach-exits)")
    answers = [logits.argmax(1) for logits in predict_exits(module, data)]
    names = [*(point.module for point in module.points), ""]
    return [
        ExitMeasure(name, float(np.mean(answer == data.labels)), float(np.mean(answer == answers[-1])), cost)
        for name, answer, cost in zip(names, answers, _costs(network, data), strict=True)
    ]


def _costs(network: Network, data: Dataset) -> list[int]:
    stages = segments(network, tensors(data, np.arange(1)))
    return list(accumulate(int(flops.of_module(stage.network.module, stage.inputs)) for stage in stages))
