"""One loaded model as the scheduler sees it: its queue, its cost, its counters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from offramp_server.errors import Overloaded
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.queue import RequestQueue
from offramp_server.scheduling.work import Work
from offramp_server.telemetry.stats import ModelStats

# Weight of the newest batch in the running mean of a model's cost.
COST_WEIGHT = 0.1

# A batch cheaper than this costs less than the round trip to its worker, so waiting for it gains nothing
# (measured: sending small batches ahead helps below about 0.2 ms and costs a third of the batch size above).
TRIVIAL_BATCH_SECONDS = 0.0002


class Lane:
    """Lives from a model's load to its unload; a reload makes a new one."""

    def __init__(self, handle: int, spec: ModelSpec, stats: ModelStats, seconds_by_items: Mapping[int, float]) -> None:
        """`seconds_by_items` is what the warm-up measured: one batch of each size."""
        self.handle = handle
        self.spec = spec
        self.stats = stats
        self.queue = RequestQueue(spec.max_batch_size)
        # Running means, first taken from the warm-up. A model that had none may cost anything, and must not be taken
        # for a trivial one: that may be computed on the event loop.
        per_item = [seconds / items for items, seconds in seconds_by_items.items()]
        self.seconds_per_item = min(per_item, default=0.0)
        self.seconds_per_batch = max(seconds_by_items.values(), default=TRIVIAL_BATCH_SECONDS)
        # Requests that are queued or being computed.
        self.entered: set[Work] = set()
        self._idle: asyncio.Event | None = None

    @property
    def trivial(self) -> bool:
        return self.seconds_per_batch < TRIVIAL_BATCH_SECONDS

    def admit(self, items: int) -> None:
        """Raises Overloaded if the queue is full, with the time that its work will take as the hint. A request that
        is larger than the queue may be is let in if nobody waits: coming back later would not help it."""
        limit = self.spec.batching.max_queue_items
        if self.queue.items and self.queue.items + items > limit:
            raise Overloaded(
                f'{self.queue.items} items wait for model "{self.spec.name}", which is its limit ({limit})',
                retry_after=max(0.01, self.queue.items * self.seconds_per_item),
            )

    def enter(self, work: Work) -> None:
        """A request has come that will be queued or computed."""
        self.entered.add(work)

    def leave(self, work: Work) -> None:
        """A request that had entered has its answer, or needs none any more."""
        self.entered.discard(work)
        if self._idle is not None and not self.entered:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return once every request that entered has left. Nobody enters any more."""
        if self.entered:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def learn_cost(self, items: int, seconds: float) -> None:
        self.seconds_per_batch += COST_WEIGHT * (seconds - self.seconds_per_batch)
        self.seconds_per_item += COST_WEIGHT * (seconds / items - self.seconds_per_item)
