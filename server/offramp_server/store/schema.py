"""What tables a state file has, and bringing an older one to what this version of the server expects."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offramp_server.errors import ConfigurationError

# "offr": what makes a SQLite file ours.
APPLICATION_ID = 0x6F666672
# A check reads the whole file, about a second for a gigabyte.
CHECKED_BYTES = 512 * 2**20
# How long to wait for a reader that checkpoints, in seconds.
BUSY_SECONDS = 5.0


class StoreUnavailable(ConfigurationError):
    """The file may be as it should, but this server cannot write it: it lies elsewhere, is read-only, or is in use."""


_VERSIONS = "CREATE TABLE IF NOT EXISTS schema_versions (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one concern. `migrations[n]` are the statements that lead from version n to n + 1."""

    name: str
    migrations: tuple[tuple[str, ...], ...]


def connect(path: Path | None) -> sqlite3.Connection:
    """For one thread at a time, which need not be this one; None: in memory. Transactions are begun by hand."""
    where = ":memory:" if path is None else str(path)
    connection = sqlite3.connect(where, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Changes nothing; the server may write meanwhile. Raises sqlite3.Error."""
    # Without a write-ahead log nobody has it open. Its folder may then be one in which SQLite could not make one.
    idle = not path.with_name(path.name + "-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if idle else ''}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def prepare(connection: sqlite3.Connection, path: Path | None, schemas: Sequence[Schema]) -> None:
    """Make it a file of ours with these tables. Raises ConfigurationError if it is another's, damaged, or newer."""
    with file_errors(path):
        check_ours(connection, path)
        _check_whole(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit outlives a loss of power; there are few, and nobody waits for them.
        connection.execute("PRAGMA synchronous = FULL")
        with transaction(connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(_VERSIONS)
            for schema in schemas:
                _migrate(connection, path, schema)


def check_ours(connection: sqlite3.Connection, path: Path | None) -> None:
    """Raises ConfigurationError, or sqlite3.Error."""
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigurationError(
            f"store.path: {path} is a SQLite database of another program; expected a file that Offramp made, or none"
        )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def file_errors(path: Path | None) -> Iterator[None]:
    """What SQLite says of a file becomes a ConfigurationError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(f"store.path: {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"store.path: {path} is damaged or no SQLite database ({error}); move it away to begin anew, "
            "or put back a copy"
        ) from error


def _check_whole(connection: sqlite3.Connection, path: Path | None) -> None:
    if path is None or path.stat().st_size > CHECKED_BYTES:
        return
    [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _migrate(connection: sqlite3.Connection, path: Path | None, schema: Schema) -> None:
    row = connection.execute("SELECT version FROM schema_versions WHERE name = ?", (schema.name,)).fetchone()
    version, known = row[0] if row else 0, len(schema.migrations)
    if version > known:
        raise ConfigurationError(
            f'store.path: {path} was written by a newer Offramp (tables "{schema.name}" have version {version}, '
            f"this one knows {known}); use that version, or another file"
        )
    for statements in schema.migrations[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(
        "INSERT INTO schema_versions VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET version = excluded.version",
        (schema.name, known),
    )
