"""One request at one model, from the queue to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from open_inference.tensor import Tensor

# What a request without a priority gets. Lower is sooner, from 1: Triton's order.
DEFAULT_PRIORITY = 100


@dataclass(slots=True)
class Timing:
    """Nanoseconds that a batch spent on its way through a worker."""

    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(slots=True)
class Answer:
    """The outputs of one request and where its time went."""

    outputs: list[Tensor]
    queue_ns: int
    timing: Timing


@dataclass(slots=True, eq=False)
class Work:
    """A validated request that waits for, or travels in, a batch. It ends when its future does."""

    # In the order of the model's spec.
    inputs: Sequence[Tensor]
    # Rows of the batch dimension; 1 for a model without one.
    items: int
    # Requests may share a batch only if their keys are equal.
    shape_key: Hashable
    future: asyncio.Future[Answer]
    priority: int = DEFAULT_PRIORITY
    # On the event loop's clock, seconds.
    deadline: float | None = None
    enqueued_ns: int = 0
    # Order of arrival. A re-sent request keeps it, and with it its place by age.
    sequence: int = field(default=0)
    # How often a worker died or failed while it computed this.
    attempts: int = 0
    # Set once it was in a batch that failed, so that it cannot take others down again.
    alone: bool = False
    queued: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return (self.priority, self.sequence)

    @property
    def waits(self) -> bool:
        return not self.future.done()

    def fail(self, error: Exception) -> None:
        if self.waits:
            self.future.set_exception(error)
