"""What routes have seen of their own answers, as rows: written in order of arrival, read again in that order.

Every item of an epoch has a position, from 0 and without gaps, by arrival. An item that was answered early and not
audited has no row: a position without one is such an item, unless a row of `gaps` or `epochs.pruned` covers it. Under
which rate of audits it came is in `rates`, which has a row for each change.
`docs/audits.md` has the tables.
"""

from __future__ import annotations

import json
import math
import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from operator import itemgetter
from typing import Any, TypeAlias

from offramp_adapters.audits.loss import ExitTotals
from offramp_adapters.audits.observation import ExitObservation, ShadowObservation

from offramp_server.store.schema import Schema

Values: TypeAlias = tuple[Any, ...]

# In tables without rowids the columns of the key come first: SQLite 3.40 takes them for damaged otherwise.
SCHEMA = Schema(
    "audits",
    (
        (
            """
            CREATE TABLE epochs (
                id INTEGER PRIMARY KEY,
                route TEXT NOT NULL,
                number INTEGER NOT NULL,
                fingerprint TEXT NOT NULL,
                subject TEXT NOT NULL,
                began REAL NOT NULL,
                reserved INTEGER NOT NULL,
                items INTEGER NOT NULL,
                pruned INTEGER NOT NULL DEFAULT 0,
                running INTEGER NOT NULL DEFAULT 1,
                UNIQUE (route, number)
            )
            """,
            """
            CREATE TABLE exits (
                id INTEGER PRIMARY KEY,
                epoch INTEGER NOT NULL REFERENCES epochs (id),
                position INTEGER NOT NULL,
                sequence INTEGER NOT NULL,
                item INTEGER NOT NULL,
                time REAL NOT NULL,
                exit INTEGER NOT NULL,
                stages INTEGER NOT NULL,
                scores TEXT NOT NULL,
                thresholds TEXT NOT NULL,
                probability REAL NOT NULL,
                lost TEXT NOT NULL,
                agreed TEXT NOT NULL,
                served INTEGER,
                reference INTEGER
            )
            """,
            "CREATE INDEX exits_by_position ON exits (epoch, position)",
            """
            CREATE TABLE exit_totals (
                epoch INTEGER NOT NULL REFERENCES epochs (id),
                exit INTEGER NOT NULL,
                items INTEGER NOT NULL,
                unseen INTEGER NOT NULL,
                audited INTEGER NOT NULL,
                lost INTEGER NOT NULL,
                disagreed INTEGER NOT NULL,
                disagreed_weight REAL NOT NULL,
                disagreed_square REAL NOT NULL,
                lost_weight REAL NOT NULL,
                lost_square REAL NOT NULL,
                largest_weight REAL NOT NULL,
                PRIMARY KEY (epoch, exit)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE gaps (
                epoch INTEGER NOT NULL REFERENCES epochs (id),
                position INTEGER NOT NULL,
                reason TEXT NOT NULL,
                until INTEGER NOT NULL,
                audited INTEGER NOT NULL,
                requests INTEGER NOT NULL,
                PRIMARY KEY (epoch, position, reason)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE shadows (
                id INTEGER PRIMARY KEY,
                epoch INTEGER NOT NULL REFERENCES epochs (id),
                sequence INTEGER NOT NULL,
                item INTEGER NOT NULL,
                time REAL NOT NULL,
                arm TEXT NOT NULL,
                shadow TEXT NOT NULL,
                lost TEXT NOT NULL,
                agreed INTEGER,
                served INTEGER,
                shadowed INTEGER
            )
            """,
            """
            CREATE TABLE shadow_totals (
                epoch INTEGER NOT NULL REFERENCES epochs (id),
                arm TEXT NOT NULL,
                shadow TEXT NOT NULL,
                items INTEGER NOT NULL,
                agreed INTEGER NOT NULL,
                disagreed INTEGER NOT NULL,
                lost INTEGER NOT NULL,
                PRIMARY KEY (epoch, arm, shadow)
            ) WITHOUT ROWID
            """,
        ),
        (
            """
            CREATE TABLE rates (
                epoch INTEGER NOT NULL REFERENCES epochs (id),
                position INTEGER NOT NULL,
                rate REAL NOT NULL,
                PRIMARY KEY (epoch, position)
            ) WITHOUT ROWID
            """,
            "ALTER TABLE gaps ADD COLUMN items INTEGER NOT NULL DEFAULT 0",
        ),
    ),
)

_TOTALS = tuple(field.name for field in fields(ExitTotals))

PUT_EPOCH = """
    INSERT INTO epochs (id, route, number, fingerprint, subject, began, reserved, items, running)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET reserved = excluded.reserved, items = excluded.items, running = excluded.running
"""
ADD_RATE = "INSERT OR REPLACE INTO rates VALUES (?, ?, ?)"
ADD_EXIT = "INSERT INTO exits VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_EXIT_TOTALS = f"""
    INSERT INTO exit_totals (epoch, exit, {", ".join(_TOTALS)}) VALUES (?, ?{", ?" * len(_TOTALS)})
    ON CONFLICT (epoch, exit) DO UPDATE SET
    {", ".join(f"{name} = {name} + excluded.{name}" for name in _TOTALS if name != "largest_weight")},
    largest_weight = max(largest_weight, excluded.largest_weight)
"""  # noqa: S608 - the names are those of a dataclass
ADD_GAP = """
    INSERT INTO gaps (epoch, position, until, audited, requests, reason, items) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (epoch, position, reason) DO UPDATE SET until = max(until, excluded.until),
    audited = audited + excluded.audited, requests = requests + excluded.requests, items = items + excluded.items
"""
ADD_SHADOW = "INSERT INTO shadows VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_SHADOW_TOTALS = """
    INSERT INTO shadow_totals (epoch, arm, shadow, items, agreed, disagreed, lost) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (epoch, arm, shadow) DO UPDATE SET items = items + excluded.items,
    agreed = agreed + excluded.agreed, disagreed = disagreed + excluded.disagreed, lost = lost + excluded.lost
"""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something of which the stream does not say all.

    Between these positions, the first included, the pairs of `audited` items are missing; or, where both are the same,
    `requests` came in there and were never answered, or nobody knows how many.
    """

    position: int
    until: int
    audited: int
    requests: int
    reason: str
    # Of the `requests`, in all.
    items: int = 0


@dataclass(slots=True)
class ShadowTotals:
    """Of one shadow beside one arm."""

    items: int = 0
    agreed: int = 0
    disagreed: int = 0
    lost: int = 0

    def count(self, seen: ShadowObservation) -> None:
        self.items += 1
        self.lost += bool(seen.lost)
        self.agreed += seen.agreed is True
        self.disagreed += seen.agreed is False


# Writing


def exit_row(epoch: int, position: int, time: float, seen: ExitObservation) -> Values:
    """Of an item for which the reference ran, or was to. `time` is when its request came, in seconds since 1970."""
    return (
        epoch, position, seen.sequence, seen.item, time, seen.exit, seen.stages,
        _numbers(seen.scores), _numbers(seen.thresholds), float(seen.probability), seen.lost,
        json.dumps([int(agreed) for agreed in seen.agreed]), _class(seen.served), _class(seen.reference),
    )  # fmt: skip


def shadow_row(epoch: int, time: float, seen: ShadowObservation) -> Values:
    agreed = None if seen.agreed is None else bool(seen.agreed)
    return (
        epoch, seen.sequence, seen.item, time, seen.arm, seen.shadow, seen.lost, agreed,
        _class(seen.served), _class(seen.shadowed),
    )  # fmt: skip


def exit_totals_row(epoch: int, exit: int, totals: ExitTotals) -> Values:
    return (epoch, exit, *astuple(totals))


def shadow_totals_row(epoch: int, arm: str, shadow: str, totals: ShadowTotals) -> Values:
    return (epoch, arm, shadow, *astuple(totals))


def gap_row(epoch: int, gap: Gap) -> Values:
    return (epoch, *astuple(gap))


def _numbers(values: Iterable[float]) -> str:
    """Exactly, so that what follows from them can be computed again; null for what is no number, as JSON has it."""
    return json.dumps([None if math.isnan(value) else float(value) for value in values])


def _read_numbers(text: str) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in json.loads(text))


def _class(value: int | None) -> int | None:
    return None if value is None else int(value)


# Reading


@dataclass(frozen=True, slots=True)
class StoredEpoch:
    id: int
    route: str
    number: int
    fingerprint: str
    subject: str
    # Seconds since 1970.
    began: float
    # Sequence numbers below this may have been used.
    reserved: int
    # Positions that have been given: the next item has this one.
    items: int
    # Positions below this may lack their rows, for they were too old.
    pruned: int


@dataclass(frozen=True, slots=True)
class Unaudited:
    """So many items in a row that were answered early, and of which nothing more is known. Their loss is 0, unless
    nothing was audited when they came (`rate`): then it could not have been anything else, and says nothing."""

    position: int
    items: int
    rate: float


@dataclass(frozen=True, slots=True)
class Pair:
    """An item for which the reference ran, or was to."""

    position: int
    time: float
    seen: ExitObservation


Step: TypeAlias = Unaudited | Pair | Gap
# Position of the first item, and the rate of audits from there on.
Rates: TypeAlias = Sequence[tuple[int, float]]

_EPOCHS = "SELECT id, route, number, fingerprint, subject, began, reserved, items, pruned FROM epochs"


def latest_epochs(connection: sqlite3.Connection) -> dict[str, StoredEpoch]:
    """By route."""
    return {row[1]: StoredEpoch(*row) for row in connection.execute(f"{_EPOCHS} ORDER BY number")}


def route_epochs(connection: sqlite3.Connection, route: str) -> list[StoredEpoch]:
    """In order."""
    rows = connection.execute(f"{_EPOCHS} WHERE route = ? ORDER BY number", (route,))
    return [StoredEpoch(*row) for row in rows]


def exit_totals(connection: sqlite3.Connection, epoch: int) -> dict[int, ExitTotals]:
    """Exact, whatever was pruned. `epoch` is an epoch's id."""
    columns = f"SELECT exit, {', '.join(_TOTALS)} FROM exit_totals WHERE epoch = ? ORDER BY exit"  # noqa: S608
    return {row[0]: ExitTotals(*row[1:]) for row in connection.execute(columns, (epoch,))}


def reference_stage(connection: sqlite3.Connection, epoch: int) -> int | None:
    """The last stage's number; None: no item was compared with it, or none is kept."""
    row = connection.execute("SELECT stages - 1 FROM exits WHERE epoch = ? LIMIT 1", (epoch,)).fetchone()
    return None if row is None else int(row[0])


def shadow_totals(connection: sqlite3.Connection, epoch: int) -> dict[tuple[str, str], ShadowTotals]:
    """By arm and shadow."""
    columns = "SELECT arm, shadow, items, agreed, disagreed, lost FROM shadow_totals WHERE epoch = ?"
    return {(row[0], row[1]): ShadowTotals(*row[2:]) for row in connection.execute(columns, (epoch,))}


def gaps(connection: sqlite3.Connection, epoch: int, position: int = 0) -> list[Gap]:
    columns = "SELECT position, until, audited, requests, reason, items FROM gaps WHERE epoch = ? AND position >= ?"
    return [Gap(*row) for row in connection.execute(f"{columns} ORDER BY position, reason", (epoch, position))]


def replay(connection: sqlite3.Connection, epoch: StoredEpoch, position: int = 0) -> Iterator[Step]:
    """The epoch from this position on, or from the first that was not pruned, in order of arrival."""
    expected = max(position, epoch.pruned)
    rates = _rates(connection, epoch.id)
    steps = _in_order(_pairs(connection, epoch, expected, rates), gaps(connection, epoch.id, expected))
    for step in steps:
        yield from _unaudited(rates, expected, step.position)
        yield step
        expected = max(expected, step.until if isinstance(step, Gap) else step.position + 1)
    yield from _unaudited(rates, expected, epoch.items)


def _rates(connection: sqlite3.Connection, epoch: int) -> Rates:
    return list(connection.execute("SELECT position, rate FROM rates WHERE epoch = ? ORDER BY position", (epoch,)))


def _rate_at(rates: Rates, position: int) -> float:
    """0 where it was never said: then nothing follows."""
    before = bisect_right(rates, position, key=itemgetter(0))
    return rates[before - 1][1] if before else 0.0


def _unaudited(rates: Rates, start: int, end: int) -> Iterator[Unaudited]:
    """The items from `start`, without `end`; by rate."""
    behind_start = bisect_right(rates, start, key=itemgetter(0))
    changes = [position for position, _ in rates[behind_start : bisect_left(rates, end, key=itemgetter(0))]]
    for first, behind in pairwise([start, *changes, end]):
        if first < behind:
            yield Unaudited(first, behind - first, _rate_at(rates, first))


def _in_order(pairs: Iterator[Pair], missing: Sequence[Gap]) -> Iterator[Pair | Gap]:
    left = list(missing)
    for pair in pairs:
        while left and left[0].position <= pair.position:
            yield left.pop(0)
        yield pair
    yield from left


def _pairs(connection: sqlite3.Connection, epoch: StoredEpoch, position: int, rates: Rates) -> Iterator[Pair]:
    columns = """
        SELECT position, time, sequence, item, exit, stages, scores, thresholds, probability, lost, agreed, served,
        reference FROM exits WHERE epoch = ? AND position >= ? ORDER BY position
    """
    for row in connection.execute(columns, (epoch.id, position)):
        where, time, sequence, item, exit, stages, scores, thresholds, probability, lost, agreed, *classes = row
        yield Pair(
            where,
            time,
            ExitObservation(
                epoch.number, sequence, item, exit, stages, _read_numbers(scores), _read_numbers(thresholds),
                probability, _rate_at(rates, where), True, lost, tuple(map(bool, json.loads(agreed))), *classes,
            ),
        )  # fmt: skip


# Keeping it bounded


@dataclass(frozen=True, slots=True)
class Retention:
    """What goes first is what is oldest."""

    # Seconds.
    age: float
    # Of exits, and of shadows.
    rows: int
    # Rows looked at in one transaction, so that commits do not wait for long.
    step: int = 5000


def prune(connection: sqlite3.Connection, keep: Retention, now: float) -> bool:
    """Take away some of what is too old or too much; whether there may be more. Totals stay as they are."""
    exits = _expired(connection, "exits", keep, now)
    shadows = _expired(connection, "shadows", keep, now)
    if exits:
        connection.execute(
            """
            UPDATE epochs SET pruned = max(pruned, gone.until)
            FROM (SELECT epoch, max(position) + 1 AS until FROM exits WHERE id <= ? GROUP BY epoch) AS gone
            WHERE gone.epoch = epochs.id
            """,
            (exits,),
        )
        connection.execute("DELETE FROM exits WHERE id <= ?", (exits,))
        connection.execute(
            """
            DELETE FROM rates WHERE position < (
                SELECT max(later.position) FROM rates AS later JOIN epochs ON epochs.id = later.epoch
                WHERE later.epoch = rates.epoch AND later.position <= epochs.pruned
            )
            """
        )
        connection.execute("DELETE FROM gaps WHERE until <= (SELECT pruned FROM epochs WHERE epochs.id = gaps.epoch)")
    connection.execute("DELETE FROM shadows WHERE id <= ?", (shadows,))
    return bool(exits or shadows)


def _expired(connection: sqlite3.Connection, table: str, keep: Retention, now: float) -> int:
    """The last of the first rows that have to go; 0: none."""
    [last] = connection.execute(f"SELECT max(id) FROM {table}").fetchone()  # noqa: S608
    gone = 0
    for row, time in connection.execute(f"SELECT id, time FROM {table} ORDER BY id LIMIT ?", (keep.step,)):  # noqa: S608
        if time >= now - keep.age and row > last - keep.rows:
            break
        gone = row
    return gone
