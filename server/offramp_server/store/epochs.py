"""Epochs of routes: which evidence belongs together, across restarts.

A route's epoch ends when something changes that its answers are judged as: a model, its engine or precision, a stage,
a temperature, what counts as agreement. Thresholds, weights and rates of audits do not end it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

from offramp_adapters.audits.loss import ExitTotals

from offramp_server.store.audits import ADD_GAP, Gap, Values, exit_totals, gap_row, latest_epochs
from offramp_server.store.database import Database

# Why nobody knows what came last: the server was killed, and rows that were not committed are gone.
CRASHED = "crash"


@dataclass(slots=True, eq=False)
class Epoch:
    """One epoch of one route, and what has been given out in it."""

    id: int
    route: str
    number: int
    fingerprint: str
    # What the fingerprint is of.
    subject: str
    # Seconds since 1970.
    began: float
    # The next request's number.
    sequence: int = 0
    # The file says that numbers below this may have been used.
    reserved: int = 0
    # The next item's position.
    items: int = 0
    # Of audits, of the items from some position on; None: the file does not say it yet for the next one.
    rate: float | None = None
    # By exit, from its beginning.
    totals: dict[int, ExitTotals] = field(default_factory=dict)

    @property
    def total(self) -> ExitTotals:
        """Over all exits."""
        total = ExitTotals()
        for each in self.totals.values():
            total.add(each)
        return total

    def next_sequence(self) -> int:
        number, self.sequence = self.sequence, self.sequence + 1
        return number

    def row(self, reserved: int, running: bool) -> Values:
        """As it is now."""
        return (
            self.id, self.route, self.number, self.fingerprint, self.subject, self.began,
            reserved, self.items, running,
        )  # fmt: skip


class Epochs:
    """The present epoch of every route."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        """Reads what was there before; `now` counts seconds since 1970."""
        self._now = now
        self._current: dict[str, Epoch] = database.ask(_restored)
        self._next_id = database.ask(_next_id)

    def current(self, route: str, subject: str) -> Epoch:
        """The present one, or a new one if the route is judged as something else now, which `subject` says in words."""
        fingerprint = hashlib.sha256(subject.encode()).hexdigest()
        before = self._current.get(route)
        if before is not None and before.fingerprint == fingerprint:
            return before
        number = 1 if before is None else before.number + 1
        epoch = Epoch(self._next_id, route, number, fingerprint, subject, self._now())
        self._next_id += 1
        self._current[route] = epoch
        return epoch

    def is_current(self, epoch: Epoch) -> bool:
        return self._current.get(epoch.route) is epoch


def _restored(connection: sqlite3.Connection) -> dict[str, Epoch]:
    _note_crashes(connection)
    return {
        route: Epoch(
            stored.id, route, stored.number, stored.fingerprint, stored.subject, stored.began,
            stored.reserved, stored.reserved, stored.items, totals=exit_totals(connection, stored.id),
        )
        for route, stored in latest_epochs(connection).items()
    }  # fmt: skip


def _note_crashes(connection: sqlite3.Connection) -> None:
    """A server that stopped in order has said so in each of its epochs."""
    open_epochs = connection.execute("SELECT id, items FROM epochs WHERE running").fetchall()
    connection.executemany(ADD_GAP, [gap_row(id, Gap(items, items, 0, 0, CRASHED)) for id, items in open_epochs])
    connection.execute("UPDATE epochs SET running = 0 WHERE running")


def _next_id(connection: sqlite3.Connection) -> int:
    [last] = connection.execute("SELECT max(id) FROM epochs").fetchone()
    return (last or 0) + 1
