"""One request at one model, from the queue to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from open_inference.tensor import Tensor

# What a request without a priority gets. Lower is sooner, from 1: Triton's order.
DEFAULT_PRIORITY = 100
# Behind every priority that a request can ask for, which are 64 bits.
LAST_PRIORITY = 1 << 64


# Requests share a batch only if theirs are equal: shapes, whether somebody waits, home.
BatchKey: TypeAlias = tuple[Hashable, bool, str]


@dataclass(slots=True)
class Timing:
    """Nanoseconds that a batch spent on its way through a worker."""

    input_ns: int
    infer_ns: int
    output_ns: int
    # How often it was cut in two because it needed more memory than there was.
    splits: int = 0
    # Of `infer_ns`, what it would have cost alone; None: all of it.
    alone_ns: int | None = None

    @property
    def cost_seconds(self) -> float:
        return (self.infer_ns if self.alone_ns is None else self.alone_ns) / 1e9


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
    # When its request came to the server; 0: now. A deferred or re-sent one keeps it, and with it its place by age.
    arrived_ns: int = 0
    # Stages that the request has behind it.
    depth: int = 0
    # It may come back as another one, with a stage more behind it.
    may_continue: bool = False
    # Nobody waits for it: it never shares a batch with what somebody waits for, and goes last.
    background: bool = False
    # The executor that holds inputs of it, which no other can compute; empty: any can.
    home: str = ""
    # A bit for each output that is to stay with the executor.
    keep: int = 0
    enqueued_ns: int = 0
    # Tells those apart that came at the same moment.
    sequence: int = 0
    # How often a worker died or failed while it computed this.
    attempts: int = 0
    # Set once it was in a batch that failed, so that it cannot take others down again.
    alone: bool = False
    queued: bool = False

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """Lower is sooner."""
        return (self.background, self.priority, self.arrived_ns, self.sequence)

    @property
    def batch_key(self) -> BatchKey:
        return (self.shape_key, self.background, self.home)

    @property
    def waits(self) -> bool:
        return not self.future.done()

    def fail(self, error: Exception) -> None:
        if self.waits:
            self.future.set_exception(error)
