"""One loaded model as the scheduler sees it: its queue, its cost, its counters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
        # Rows whose inputs are being prepared, before they are queued.
        self.preparing_items = 0
        # Requests that are queued or being computed.
        self.entered: set[Work] = set()
        # Requests that will enter, or will again.
        self._expected = 0
        self._idle: asyncio.Event | None = None

    @property
    def trivial(self) -> bool:
        return self.seconds_per_batch < TRIVIAL_BATCH_SECONDS

    def admit(self, items: int) -> None:
        """Raises Overloaded if the queue is full, with the time that its work will take as the hint. A request that
        is larger than the queue may be is let in if nobody waits: coming back later would not help it."""
        limit = self.spec.batching.max_queue_items
        waiting = self.queue.items + self.preparing_items
        if waiting and waiting + items > limit:
            raise Overloaded(
                f'{waiting} items wait for model "{self.spec.name}", which is its limit ({limit})',
                retry_after=max(0.01, waiting * self.seconds_per_item),
            )

    @contextmanager
    def preparing(self, items: int) -> Iterator[None]:
        """Count rows as waiting, and keep the model in place for them, while their inputs are prepared.

        Raises Overloaded as `admit` does.
        """
        self.admit(items)
        self.preparing_items += items
        try:
            yield
        finally:
            self.preparing_items -= items
            self._note_idle()

    def enter(self, work: Work) -> None:
        """A request has come that will be queued or computed."""
        self.entered.add(work)

    def leave(self, work: Work) -> None:
        """A request that had entered has its answer, or needs none any more."""
        self.entered.discard(work)
        self._note_idle()

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Keep the model in place for a request that runs it more than once."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._note_idle()

    async def wait_idle(self) -> None:
        """Return once every request that entered, or is expected to, has left. No others come any more."""
        # Again and again, for one whose inputs are prepared leaves that and enters.
        while not self._is_idle:
            self._idle = asyncio.Event()
            await self._idle.wait()

    @property
    def _is_idle(self) -> bool:
        return not (self.entered or self.preparing_items or self._expected)

    def _note_idle(self) -> None:
        if self._idle is not None and self._is_idle:
            self._idle.set()

    def learn_cost(self, items: int, seconds: float) -> None:
        self.seconds_per_batch += COST_WEIGHT * (seconds - self.seconds_per_batch)
        self.seconds_per_item += COST_WEIGHT * (seconds / items - self.seconds_per_item)
