"""From what routes see of their answers to rows: counted at once, written in order of arrival, never waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from offramp_adapters.audits.loss import ExitTotals
from offramp_adapters.audits.observation import ExitObservation

from offramp_server.errors import OfframpError
from offramp_server.routing.arrivals import Arrival, Arrivals
from offramp_server.store.audits import (
    ADD_EXIT,
    ADD_EXIT_TOTALS,
    ADD_GAP,
    ADD_RATE,
    ADD_SHADOW,
    ADD_SHADOW_TOTALS,
    PUT_EPOCH,
    Gap,
    ShadowTotals,
    Values,
    exit_row,
    exit_totals_row,
    gap_row,
    shadow_row,
    shadow_totals_row,
)
from offramp_server.store.database import Database
from offramp_server.store.epochs import Epoch, Epochs
from offramp_server.store.writer import Rows

log = logging.getLogger("offramp.routing")

# Requests of one epoch, or observations of them, that wait for an older one; more, and the oldest is given up.
HELD_REQUESTS = 100_000
# Rows of one epoch that are handed to the writer at once, and how long they wait for more of them, in seconds.
HANDED_ROWS = 500
HANDED_SECONDS = 0.1
# Sequence numbers that may be used before the next commit says how many were. A restart after a crash skips them.
RESERVED = 1_000_000
# Why rows are missing: they came faster than the disk takes them, for longer than the buffer lasts.
OVERFLOW = "overflow"
SHUTDOWN = "shutdown"


@dataclass(slots=True)
class Pending:
    """Rows of one epoch that the writer has not got yet. The totals are exact, even where rows had to go."""

    exits: list[Values] = field(default_factory=list)
    shadows: list[Values] = field(default_factory=list)
    rates: list[Values] = field(default_factory=list)
    # By position and reason.
    gaps: dict[tuple[int, str], Gap] = field(default_factory=dict)
    # By exit; by arm and shadow.
    exit_totals: dict[int, ExitTotals] = field(default_factory=dict)
    shadow_totals: dict[tuple[str, str], ShadowTotals] = field(default_factory=dict)

    def add_gap(self, gap: Gap) -> None:
        before = self.gaps.get((gap.position, gap.reason))
        if before is not None:
            gap = Gap(
                gap.position, max(before.until, gap.until), before.audited + gap.audited,
                before.requests + gap.requests, gap.reason, before.items + gap.items,
            )  # fmt: skip
        self.gaps[gap.position, gap.reason] = gap

    def rows(self, epoch: int) -> Rows:
        return [
            (ADD_RATE, self.rates),
            (ADD_EXIT, self.exits),
            (ADD_SHADOW, self.shadows),
            (ADD_GAP, [gap_row(epoch, gap) for gap in self.gaps.values()]),
            (ADD_EXIT_TOTALS, [exit_totals_row(epoch, exit, each) for exit, each in self.exit_totals.items()]),
            (ADD_SHADOW_TOTALS, [shadow_totals_row(epoch, *key, each) for key, each in self.shadow_totals.items()]),
        ]

    def shrink(self, until: int) -> int:
        """Give up the rows, and remember how many there were and between which positions; their number."""
        lost = len(self.exits) + len(self.shadows)
        positions = [row[1] for row in self.exits] + [gap.position for gap in self.gaps.values()]
        if positions:
            audited = len(self.exits) + sum(gap.audited for gap in self.gaps.values())
            requests = sum(gap.requests for gap in self.gaps.values())
            items = sum(gap.items for gap in self.gaps.values())
            self.gaps = {}
            self.add_gap(Gap(min(positions), until, audited, requests, OVERFLOW, items))
        self.exits, self.shadows = [], []
        return lost


@dataclass(slots=True, eq=False)
class _Stream:
    """What comes in one epoch."""

    epoch: Epoch
    arrivals: Arrivals
    pending: Pending | None = None


class Recorder:
    """Runs on one event loop."""

    def __init__(
        self,
        database: Database,
        epochs: Epochs,
        now: Callable[[], float],
        held_requests: int = HELD_REQUESTS,
    ) -> None:
        """`now` counts seconds since 1970."""
        # Rows that were given up because the buffer was full.
        self.overflowed = 0
        self._database = database
        self._epochs = epochs
        self._now = now
        self._limit = held_requests
        self._streams: dict[int, _Stream] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """Requests whose observations wait for those of an older one."""
        return sum(stream.arrivals.held for stream in self._streams.values())

    @contextmanager
    def request(self, epoch: Epoch, items: int, observed: bool = True) -> Iterator[Arrival]:
        """A request's way to its answer. One that is not observed has no place in the stream."""
        arrival = self.begin(epoch) if observed else Arrival(0, 0.0)
        arrival.items = items
        try:
            yield arrival
        except BaseException as error:
            if arrival.begun:
                arrival.failure = _reason(error)
            raise
        finally:
            arrival.release()

    def begin(self, epoch: Epoch) -> Arrival:
        """A request has come. It has to be released in the end, whatever becomes of it."""
        stream = self._streams.get(epoch.id)
        if stream is None:
            stream = self._streams[epoch.id] = self._open(epoch)
        arrival = stream.arrivals.add(epoch.next_sequence(), self._now())
        if epoch.sequence + RESERVED // 2 > epoch.reserved:
            self._write(epoch, [])
        return arrival

    def _open(self, epoch: Epoch) -> _Stream:
        stream = _Stream(epoch, Arrivals(self._limit, lambda arrival: self._settled(stream, arrival)))
        # From now on the file says that something may be missing, until it says that nothing is.
        self._write(epoch, [])
        return stream

    def _settled(self, stream: _Stream, arrival: Arrival) -> None:
        """A request whose turn it is."""
        if not arrival.failure and not arrival.observations:
            return
        if stream.pending is None:
            stream.pending = Pending()
        if arrival.failure:
            at = stream.epoch.items
            stream.pending.add_gap(Gap(at, at, 0, 1, arrival.failure, arrival.items))
        for seen in sorted(arrival.observations, key=lambda each: each.item):
            if isinstance(seen, ExitObservation):
                self._add_exit(stream.epoch, stream.pending, arrival.time, seen)
            else:
                key = seen.arm, seen.shadow
                stream.pending.shadow_totals.setdefault(key, ShadowTotals()).count(seen)
                stream.pending.shadows.append(shadow_row(stream.epoch.id, arrival.time, seen))
        if len(stream.pending.exits) + len(stream.pending.shadows) >= HANDED_ROWS:
            self._hand_over(stream)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HANDED_SECONDS, self.hand_over)

    def _add_exit(self, epoch: Epoch, pending: Pending, time: float, seen: ExitObservation) -> None:
        position, epoch.items = epoch.items, epoch.items + 1
        for totals in (epoch.totals, pending.exit_totals):
            totals.setdefault(seen.exit, ExitTotals()).count(seen)
        if seen.rate != epoch.rate:
            epoch.rate = seen.rate
            pending.rates.append((epoch.id, position, float(seen.rate)))
        if seen.audited:
            pending.exits.append(exit_row(epoch.id, position, time, seen))

    def hand_over(self) -> None:
        """Give the writer what has settled. Happens by itself a moment after something has."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in list(self._streams.values()):
            if stream.pending is not None:
                self._hand_over(stream)
            if self._is_over(stream) and self._write(stream.epoch, [], running=False):
                del self._streams[stream.epoch.id]
        if any(stream.pending is not None for stream in self._streams.values()):
            self._timer = asyncio.get_running_loop().call_later(HANDED_SECONDS, self.hand_over)

    def _is_over(self, stream: _Stream) -> bool:
        return not (stream.pending or stream.arrivals.held or self._epochs.is_current(stream.epoch))

    def _hand_over(self, stream: _Stream, running: bool = True) -> None:
        pending = stream.pending or Pending()
        if self._write(stream.epoch, pending.rows(stream.epoch.id), running):
            stream.pending = None
            return
        lost = pending.shrink(stream.epoch.items)
        if lost and not self.overflowed:
            log.warning("the store takes rows slower than they come; some are given up and counted")
        self.overflowed += lost

    def _write(self, epoch: Epoch, rows: Rows, running: bool = True) -> bool:
        """False if there is no room."""
        reserved = epoch.sequence + (RESERVED if running else 0)
        if not self._database.append([(PUT_EPOCH, [epoch.row(reserved, running)]), *rows]):
            return False
        epoch.reserved = reserved
        return True

    async def close(self) -> None:
        """What has not settled is given up. Everything else is handed to the writer."""
        for stream in self._streams.values():
            stream.arrivals.give_up(SHUTDOWN)
        # It has room then.
        await self._database.flush()
        for stream in self._streams.values():
            self._hand_over(stream, running=False)
        if self._timer is not None:
            self._timer.cancel()


def _reason(error: BaseException) -> str:
    if isinstance(error, OfframpError):
        return error.reason
    return "cancelled" if isinstance(error, asyncio.CancelledError) else OfframpError.reason
