"""The requests that wait for one model, in the order in which they are to be computed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TypeAlias

from offramp_server.scheduling.work import BatchKey, Work

# Cancelled entries stay where they are until they come up; more of them than this and than live ones are swept.
SWEEP_ABOVE = 256

_Entry: TypeAlias = tuple[tuple[bool, int, int, int], Work]


class RequestQueue:
    """Priority first, then age; a batch takes only requests of one shape. Knows no clock and no event loop."""

    def __init__(self, max_batch_items: int) -> None:
        self._max_batch_items = max(1, max_batch_items)
        self._groups: dict[BatchKey, list[_Entry]] = {}
        self._entries = 0
        self.requests = 0
        self.items = 0
        # Those of `items` for which nobody waits.
        self.background_items = 0

    def push(self, work: Work) -> None:
        heapq.heappush(self._groups.setdefault(work.batch_key, []), (work.order, work))
        self._entries += 1
        self._count(work, 1)
        work.queued = True

    def discard(self, work: Work) -> None:
        """Forget a request that was cancelled or has expired while it waited; its tensors are let go at once.

        One that already travels in a batch is left to it.
        """
        if not work.queued:
            return
        work.queued = False
        self._count(work, -1)
        work.inputs = ()
        if self._entries > SWEEP_ABOVE and self._entries > 2 * self.requests:
            self._sweep()

    def head(self, executor: str = "") -> Work | None:
        """The request whose turn it is at this executor: one that is at home at another does not count."""
        if not self.requests:
            return None
        first: _Entry | None = None
        for key in list(self._groups):
            if not key[2] or key[2] == executor:
                entry = self._live_head(key)
                if entry is not None and (first is None or entry < first):
                    first = entry
        # There is none if all were cancelled in this turn of the loop.
        return None if first is None else first[1]

    def at_home(self, executor: str) -> Iterator[Work]:
        """Those that only this executor can compute."""
        for key, group in self._groups.items():
            if key[2] == executor:
                yield from (work for _, work in group if work.waits)

    def first(self) -> Work | None:
        """The request that comes first of those that somebody waits for, wherever it can be computed."""
        heads = [entry for key in list(self._groups) if (entry := self._live_head(key))]
        return min((entry for entry in heads if not entry[1].background), default=(None, None))[1]

    def has_full_batch(self, head: Work) -> bool:
        """Whether the batch that begins with `head`, which `head()` has returned, could not grow by waiting."""
        if head.alone or len(self._groups) == 1:
            return head.alone or self.items >= self._max_batch_items
        missing = self._max_batch_items
        for _, work in self._groups[head.batch_key]:
            missing -= work.items if work.waits else 0
            if missing <= 0:
                return True
        return False

    def take_batch(self, head: Work, max_items: int | None = None) -> list[Work]:
        """Remove and return the batch that begins with `head`, which `head()` has returned: at most `max_items` rows
        (left out: as many as the model takes), never past the first request that does not fit, so that a large one is
        not overtaken for ever."""
        key = head.batch_key
        batch = [self._pop(key)]
        room = (self._max_batch_items if max_items is None else max_items) - head.items
        while not head.alone and room > 0:
            entry = self._live_head(key)
            if entry is None or entry[1].items > room or entry[1].alone:
                break
            batch.append(self._pop(key))
            room -= entry[1].items
        return batch

    def _live_head(self, key: BatchKey) -> _Entry | None:
        group = self._groups.get(key)
        while group:
            if group[0][1].waits:
                return group[0]
            heapq.heappop(group)
            self._entries -= 1
        self._groups.pop(key, None)
        return None

    def _pop(self, key: BatchKey) -> Work:
        work = heapq.heappop(self._groups[key])[1]
        self._entries -= 1
        self._count(work, -1)
        work.queued = False
        if not self._groups[key]:
            del self._groups[key]
        return work

    def _count(self, work: Work, sign: int) -> None:
        self.requests += sign
        self.items += sign * work.items
        if work.background:
            self.background_items += sign * work.items

    def _sweep(self) -> None:
        for key, group in list(self._groups.items()):
            live = [entry for entry in group if entry[1].waits]
            heapq.heapify(live)
            self._groups[key] = live
            if not live:
                del self._groups[key]
        self._entries = sum(len(group) for group in self._groups.values())
