"""What happened in a run, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the data. `number` counts from 1.

    `figures` are running means over the last batches ("loss", "student" for the accuracy in training, what the
    objective adds) and, where there is a validation set, "validation_accuracy" and "validation_loss".
    """

    number: int
    learning_rate: float
    figures: Mapping[str, float]


@dataclass(slots=True)
class History:
    epochs: list[Epoch] = field(default_factory=list)
    # The epoch whose weights the network has: the last one, unless patience chose another.
    best_epoch: int = 0
    stopped_early: bool = False

    def state(self) -> list[dict[str, Any]]:
        return [asdict(epoch) for epoch in self.epochs]

    def load(self, state: list[dict[str, Any]]) -> None:
        self.epochs = [Epoch(**epoch) for epoch in state]


class RunningMeans:
    """Exponential means over about 100 batches; plain ones while there are fewer."""

    _SPAN = 100

    def __init__(self) -> None:
        self.means: dict[str, float] = {}
        self._count = 0

    def update(self, figures: Mapping[str, float]) -> None:
        self._count += 1
        weight = 1 / min(self._count, self._SPAN)
        for name, value in figures.items():
            mean = self.means.get(name, value)
            self.means[name] = mean + weight * (value - mean)

    def state(self) -> dict[str, Any]:
        return {"means": dict(self.means), "count": self._count}

    def load(self, state: dict[str, Any]) -> None:
        self.means, self._count = dict(state["means"]), state["count"]
