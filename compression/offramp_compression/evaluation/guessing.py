"""Has a model learnt anything? Its accuracy beside that of always saying the most frequent class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

# How often a model that guesses may pass for one that does not.
_SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Guessing:
    """`accuracy` is a model's and `majority` that of the most frequent class, on the same `examples`."""

    accuracy: float
    majority: float
    examples: int

    @property
    def beaten(self) -> bool:
        """Whether so many right answers are too many for somebody who is right `majority` of the time: a one-sided
        binomial test at 5 %."""
        right = round(self.accuracy * self.examples)
        return bool(binom.sf(right - 1, self.examples, self.majority) < _SIGNIFICANCE)

    def metrics(self) -> dict[str, float]:
        """For a provenance. `better_than_guessing` is 1 or 0."""
        return {"majority_accuracy": self.majority, "better_than_guessing": float(self.beaten)}

    def warning(self, name: str) -> str:
        """What to tell the user if it is not beaten."""
        return (
            f"{name} is right on {self.accuracy:.1%} of {self.examples} examples, and always saying the most frequent "
            f"class would be on {self.majority:.1%}: it is not shown to be better than guessing. Look at how the loss "
            f"went, lower the learning rate or clip gradients, train for longer, check the labels, or measure on more "
            f"examples"
        )


def guessing(accuracy: float, labels: NDArray[np.int64]) -> Guessing:
    """`accuracy` was measured on examples with these `labels`, int64 [N]."""
    return Guessing(accuracy, float(np.bincount(labels).max() / len(labels)), len(labels))
