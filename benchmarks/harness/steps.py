"""A load in steps, and what became of each request: plain data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A share of fewer answers than this says nothing.
FEWEST_ANSWERS = 10


@dataclass(frozen=True)
class Turn:
    """One route through all phases once; an entry for each request, in the order in which they ended."""

    route: str
    round: int
    # Seconds since 1970.
    began: float
    # Since then.
    due_s: list[float]
    latencies_s: list[float]
    statuses: list[str]
    # Whether the answer was right; False if there was none.
    right: list[bool]
    # Whether the answer was the first stage's.
    early: list[bool]
    other_cores: float


@dataclass(frozen=True)
class Plan:
    """The load, and what counts as answered."""

    # Seconds and requests per second of each phase.
    phases: tuple[tuple[float, float], ...]
    deadline: float
    rounds: int

    @property
    def edges(self) -> list[float]:
        """When phases begin, and when the last one ends."""
        return [0.0, *np.cumsum([seconds for seconds, _ in self.phases]).tolist()]


@dataclass(frozen=True)
class Columns:
    """A turn, for counting."""

    due: NDArray[np.float64]
    latency: NDArray[np.float64]
    answered: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    right: NDArray[np.bool_]
    early: NDArray[np.bool_]

    @classmethod
    def of(cls, turn: Turn, deadline: float) -> Columns:
        status, latency = np.array(turn.statuses), np.array(turn.latencies_s)
        return cls(
            np.array(turn.due_s), latency, (status == "OK") & (latency <= deadline), status == "RESOURCE_EXHAUSTED",
            np.array(turn.right), np.array(turn.early),
        )  # fmt: skip

    def during(self, start: float, end: float) -> Columns:
        chosen = (self.due >= start) & (self.due < end)
        return Columns(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @property
    def share_answered(self) -> float:
        return float(self.answered.mean()) if len(self.answered) else float("nan")

    @property
    def accuracy(self) -> float:
        """Of those that were answered in time."""
        return float(self.right[self.answered].mean()) if self.answered.sum() >= FEWEST_ANSWERS else float("nan")

    @property
    def share_right(self) -> float:
        """Of all, answered or not."""
        return float((self.right & self.answered).mean()) if len(self.right) else float("nan")

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latency[self.answered], percent)) * 1e3 if self.answered.any() else float("nan")

    @property
    def share_early(self) -> float:
        return float(self.early[self.answered].mean()) if self.answered.any() else float("nan")
