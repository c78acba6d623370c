"""Settings of routes that were changed while they ran, and the history of the changes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from offramp_server.routing.overrides import Override, RouteChange
from offramp_server.store.database import Database
from offramp_server.store.schema import Schema

# Of each route the state that is in force. Values are JSON objects of numbers by key.
_SETTINGS = """\
CREATE TABLE route_settings (
    route TEXT PRIMARY KEY,
    settings TEXT NOT NULL,
    file_digest TEXT NOT NULL,
    updated_at REAL NOT NULL,
    updated_by TEXT NOT NULL
) WITHOUT ROWID"""
_CHANGES = """\
CREATE TABLE route_changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    route TEXT NOT NULL,
    kind TEXT NOT NULL,
    at REAL NOT NULL,
    by TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL
)"""
_INDEX = "CREATE INDEX route_changes_by_route ON route_changes (route, number)"

ROUTE_SETTINGS = Schema("route_settings", ((_SETTINGS, _CHANGES, _INDEX),))


class RouteSettings:
    """A `SettingsStore`. Every method may raise FailedPrecondition where the disk does not do its part."""

    def __init__(self, database: Database) -> None:
        """`database` has to have the schema ROUTE_SETTINGS."""
        self._database = database

    async def override(self, route: str) -> Override | None:
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT settings, file_digest, updated_at, updated_by FROM route_settings WHERE route = ?", (route,)
            ).fetchone()
        )
        return None if row is None else Override(json.loads(row[0]), *row[1:])

    async def record(self, change: RouteChange, override: Override) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO route_changes (route, kind, at, by, before, after) VALUES (?, ?, ?, ?, ?, ?)",
                (change.route, change.kind, change.at, change.by, _text(change.before), _text(change.after)),
            )
            connection.execute(
                "INSERT OR REPLACE INTO route_settings VALUES (?, ?, ?, ?, ?)",
                (change.route, _text(override.settings), override.digest, override.updated_at, override.updated_by),
            )

        await self._database.write(write)

    async def changes(self, route: str, before: int | None, limit: int) -> Sequence[RouteChange]:
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT route, kind, at, by, before, after, number FROM route_changes "
                "WHERE route = ? AND (? IS NULL OR number < ?) ORDER BY number DESC LIMIT ?",
                (route, before, before, limit),
            ).fetchall()
        )
        return [
            RouteChange(name, kind, at, by, json.loads(old), json.loads(new), number)
            for name, kind, at, by, old, new, number in rows
        ]


def _text(settings: Mapping[str, float]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
