"""A batch on its way through an executor, and what an executor is to the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from offramp_adapters.routes.held import Held
from open_inference.tensor import Tensor

from offramp_server.scheduling.held import HeldMemory, Keep
from offramp_server.scheduling.work import Timing, Work


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that one worker computes together."""

    # Names the loaded model inside every worker; never reused.
    handle: int
    works: list[Work]
    items: int
    # Monotonic nanoseconds at which it left the queue.
    sent_ns: int
    # So cheap that a hop to another thread would cost more.
    trivial: bool = False
    # What of its outputs stays; None: nothing.
    keep: Keep | None = None
    # Inputs that the executor holds: they have to be there until this is reported, whoever is cancelled meanwhile.
    held: Sequence[Sequence[Tensor]] = ()

    def joined_inputs(self) -> list[tuple[Tensor, list[Tensor]]]:
        """For each input: its shape for the whole batch (with empty data), and the parts that make it up in order. One
        that the executor holds is a `Held` of the whole batch."""
        first = self.works[0].inputs
        if len(self.works) == 1:
            return [(tensor, [tensor]) for tensor in first]
        joined: list[tuple[Tensor, list[Tensor]]] = []
        for index, tensor in enumerate(first):
            parts = [work.inputs[index] for work in self.works]
            if isinstance(tensor, Held):
                joined.append((Held.join(cast(list[Held], parts)), parts))
            else:
                joined.append((Tensor(tensor.name, tensor.datatype, (self.items, *tensor.shape[1:]), b""), parts))
        return joined


class BatchSink(Protocol):
    """Where an executor reports; called on the event loop's thread, in the order of submission."""

    def completed(self, executor: Executor, batch: Batch, outputs: Sequence[Tensor], timing: Timing) -> None:
        """`outputs` may be views of memory that is reused as soon as this returns. Those that were only kept have no
        data."""
        ...

    def failed(self, executor: Executor, batch: Batch, message: str) -> None:
        """The model raised. The executor is well."""
        ...

    def lost(self, executor: Executor, batches: Sequence[Batch], computing: bool) -> None:
        """The executor is gone, and with it these batches, oldest first. `computing`: it had begun with the oldest,
        which may be what ended it."""
        ...


class Executor(Protocol):
    """Computes batches on one device in the order in which they are submitted."""

    @property
    def name(self) -> str:
        """No other executor of the device ever has the same."""
        ...

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet reported."""
        ...

    @property
    def slots(self) -> int:
        """The most batches it can hold."""
        ...

    @property
    def held(self) -> HeldMemory:
        """What it keeps of batches for later ones."""
        ...

    def holds(self, handle: int) -> bool:
        """Whether this model is loaded and warm here."""
        ...

    def submit(self, batch: Batch) -> None: ...
