"""One loaded model as the scheduler sees it: its queue, its cost, its counters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from offramp_server.errors import Overloaded
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.cost import CostCurve
from offramp_server.scheduling.queue import RequestQueue
from offramp_server.scheduling.work import Work
from offramp_server.telemetry.stats import ModelStats


class Lane:
    """Lives from a model's load to its unload; a reload makes a new one."""

    def __init__(self, handle: int, spec: ModelSpec, stats: ModelStats, seconds_by_items: Mapping[int, float]) -> None:
        """`seconds_by_items` is what the warm-up measured: one batch of each size."""
        self.handle = handle
        self.spec = spec
        self.stats = stats
        self.queue = RequestQueue(spec.max_batch_size)
        self.cost = CostCurve(seconds_by_items, spec.max_batch_size)
        # Rows whose inputs are being prepared, before they are queued.
        self.preparing_items = 0
        # Requests that are queued or being computed.
        self.entered: set[Work] = set()
        # Requests that will enter, or will again.
        self._expected = 0
        self._idle: asyncio.Event | None = None

    def admit(self, items: int, background: bool = False) -> None:
        """Raises Overloaded if the queue is full, with the time that its work will take as the hint. A request that
        is larger than the queue may be is let in if nobody waits: coming back later would not help it. What nobody
        waits for has a limit of its own, of the same size, so that it never takes a place from the others."""
        limit = self.spec.batching.max_queue_items
        waiting = self.queue.background_items
        if not background:
            waiting = self.queue.items - waiting + self.preparing_items
        if waiting and waiting + items > limit:
            raise Overloaded(
                f'{waiting} items wait for model "{self.spec.name}", which is its limit ({limit})',
                retry_after=max(0.01, waiting * self.cost.per_item),
            )

    @contextmanager
    def preparing(self, items: int, background: bool = False) -> Iterator[None]:
        """Count rows as waiting, and keep the model in place for them, while their inputs are prepared.

        Raises Overloaded as `admit` does.
        """
        self.admit(items, background)
        counted = 0 if background else items
        self.preparing_items += counted
        try:
            with self.expected():
                yield
        finally:
            self.preparing_items -= counted

    def enter(self, work: Work) -> None:
        """A request has come that will be queued or computed."""
        self.entered.add(work)

    def leave(self, work: Work) -> None:
        """A request that had entered has its answer, or needs none any more."""
        self.entered.discard(work)
        self._note_idle()

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Keep the model in place for a request that will enter, or will again."""
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
        return not (self.entered or self._expected)

    def _note_idle(self) -> None:
        if self._idle is not None and self._is_idle:
            self._idle.set()
