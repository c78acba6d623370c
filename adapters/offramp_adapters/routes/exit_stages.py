"""The stages of an early-exit route once it is known what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from open_inference.tensor import Tensor

from offramp_adapters.confidence.agreement import Agreement
from offramp_adapters.confidence.scores import SoftmaxScore, judge
from offramp_adapters.routes.deciding import Scale
from offramp_adapters.routes.exit_thresholds import HIGHEST, Rules
from offramp_adapters.routes.plan import Answer, Target, Together

ExitScore: TypeAlias = Literal["max_probability", "margin", "entropy", "agreement", "patience"]

SOFTMAX: tuple[SoftmaxScore, ...] = ("max_probability", "margin", "entropy")
AGREEMENT = "agreement"
PATIENCE = "patience"


@dataclass(frozen=True, slots=True)
class BoundStage:
    """One stage, what it takes and hands on, and how sure it is of its answers."""

    name: str
    target: Target
    # Where the network begins that it is a segment of; its own number, if it takes the request's inputs.
    start: int
    # The whole request through this stage, on the way to the reference: the same for all.
    whole: Together
    # Outputs that the next stage takes.
    hands_on: tuple[str, ...]
    # What its inputs are, for errors; empty: the request's.
    inputs_are: str
    decides: str
    batched: bool
    scale: Scale
    temperature: float
    score: SoftmaxScore
    # Its score is the one that the ensemble below gives.
    by_agreement: bool = False
    # Those of `hands_on` that can stay in the worker: the next stage is computed on the same device, and nobody else
    # takes them.
    keep: frozenset[str] = frozenset()

    def judge(self, answer: Answer) -> tuple[list[int | None], list[float]]:
        """The class of each item (None: there is none), and the score (NaN: unknown)."""
        for tensor in answer.outputs:
            if tensor.name == self.decides:
                break
        classes, scores = judge(tensor, self.batched, self.score, self.scale, self.temperature)
        if self.by_agreement:
            # Sums of weights may come out above 1 by their rounding.
            scores = [min(score, HIGHEST) for score in answer.scores[AGREEMENT].tolist()]
        return classes, scores


@dataclass(frozen=True, slots=True, eq=False)
class BoundExits:
    """All that a passage goes by."""

    stages: tuple[BoundStage, ...]
    # By level of load.
    rules: tuple[Rules, ...]
    # Outputs of the route's answers, in order, and the one of them that decides.
    outputs: tuple[str, ...]
    decides: str
    batched: bool
    # Items that every stage takes; None: the first stage takes no more than the others.
    max_items: int | None
    agreement: Agreement
    # Whether answers have classes.
    classifies: bool
    # 0: exits go by their scores.
    patience: int = 0

    @property
    def last(self) -> int:
        return len(self.stages) - 1

    def outputs_of(self, answer: Answer) -> Sequence[Tensor]:
        """The answer without what stages only hand on."""
        tensors = answer.outputs
        if tuple([tensor.name for tensor in tensors]) == self.outputs:
            return tensors
        by_name = {tensor.name: tensor for tensor in tensors}
        return [by_name[name] for name in self.outputs]
