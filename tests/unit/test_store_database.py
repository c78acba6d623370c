"""The server's durable state: what survives, what is refused, and that nobody waits for a disk."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from offramp_server.errors import ConfigurationError, FailedPrecondition
from offramp_server.store.database import Database, read_file
from offramp_server.store.schema import Schema
from offramp_server.store.writer import Buffering, Upkeep

NOTES = Schema("notes", (("CREATE TABLE notes (n INTEGER PRIMARY KEY, words TEXT NOT NULL)",),))
INSERT = "INSERT INTO notes VALUES (?, ?)"
# Nothing is committed unless somebody asks for it.
PATIENT = Buffering(commit_interval=3600, commit_rows=1_000_000, limit=1_000_000)


def notes(connection: sqlite3.Connection) -> list[int]:
    return [n for (n,) in connection.execute("SELECT n FROM notes ORDER BY n")]


def wait_until(holds: Callable[[], bool]) -> None:
    """The writer has a thread of its own."""
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0)


def committed(database: Database) -> bool:
    return not database.buffered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite3"


async def test_what_was_appended_is_there_after_a_restart(path: Path) -> None:
    database = Database(path, [NOTES], PATIENT)
    assert database.append([(INSERT, [(1, "a"), (2, "b")])])
    assert database.append([(INSERT, [(3, "c")])])
    await database.close()

    again = Database(path, [NOTES])
    assert await again.read(notes) == [1, 2, 3]
    await again.close()


async def test_rows_are_committed_by_themselves_after_a_while_and_at_once_when_they_are_many(path: Path) -> None:
    for buffering in (Buffering(0.001, 1_000_000), Buffering(3600, 2)):
        database = Database(path, [NOTES], buffering)
        database.append([(INSERT, [(1, "a")])])
        database.append([(INSERT, [(2, "b")])])
        wait_until(partial(committed, database))
        assert read_file(path, notes) == [1, 2]
        await database.write(lambda connection: connection.execute("DELETE FROM notes"))
        await database.close()


async def test_a_flush_commits_what_came_before_it(path: Path) -> None:
    database = Database(path, [NOTES], PATIENT)
    database.append([(INSERT, [(1, "a")])])
    await database.flush()
    assert (database.buffered, database.counters.rows, database.counters.commits) == (0, 1, 1)
    assert read_file(path, notes) == [1]
    await database.close()


async def test_a_write_is_on_disk_when_it_returns_and_follows_what_was_appended(path: Path) -> None:
    database = Database(path, [NOTES], PATIENT)
    database.append([(INSERT, [(1, "a")])])

    def rename(connection: sqlite3.Connection) -> int:
        return connection.execute("UPDATE notes SET words = 'z'").rowcount

    assert await database.write(rename) == 1
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT * FROM notes").fetchall() == [(1, "z")]
    await database.close()


async def test_of_a_write_that_fails_nothing_happens(path: Path) -> None:
    database = Database(path, [NOTES])

    def halfway(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (1, "a"))
        raise KeyError("changed its mind")

    with pytest.raises(KeyError):
        await database.write(halfway)
    assert await database.read(notes) == []
    await database.close()


async def test_a_write_that_nobody_waits_for_any_more_harms_no_other(path: Path) -> None:
    database = Database(path, [NOTES], PATIENT)
    task = asyncio.create_task(database.write(notes))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await database.write(notes) == []
    await database.close()


async def test_in_memory_everything_works_and_nothing_is_durable() -> None:
    database = Database(None, [NOTES])
    assert not database.durable
    database.append([(INSERT, [(1, "a")])])
    await database.flush()
    assert await database.read(notes) == [1]
    await database.close()


async def test_a_full_buffer_takes_all_of_some_rows_or_none(path: Path) -> None:
    database = Database(path, [NOTES], Buffering(3600, 1_000_000, limit=3))
    assert database.append([(INSERT, [(1, "a"), (2, "b")])])
    assert not database.append([(INSERT, [(3, "c"), (4, "d")])])
    assert database.append([(INSERT, [(5, "e")])])
    await database.flush()
    assert database.append([(INSERT, [(6, "f")])])
    await database.close()
    assert read_file(path, notes) == [1, 2, 5, 6]


async def test_with_a_full_disk_rows_wait_and_are_written_once_there_is_room(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(path, [NOTES], PATIENT)

    def limit_pages(pages: int) -> None:
        database.ask(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    limit_pages(1)
    database.append([(INSERT, [(n, "x" * 1000) for n in range(100)])])
    await database.flush()
    assert (database.buffered, database.counters.errors, database.counters.lost) == (100, 1, 0)
    assert "the store cannot be written (database or disk is full); 100 rows wait" in caplog.text
    with pytest.raises(FailedPrecondition, match="could not store it: database or disk is full"):
        await database.write(lambda connection: connection.execute(INSERT, (1000, "x" * 100_000)).rowcount)
    limit_pages(100_000)
    await database.flush()
    assert (database.buffered, database.counters.rows) == (0, 100)
    await database.close()


async def test_what_a_disk_that_stays_full_never_took_is_counted_as_lost(path: Path) -> None:
    database = Database(path, [NOTES], PATIENT)
    database.ask(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone())
    database.append([(INSERT, [(n, "x" * 1000) for n in range(100)])])
    await database.close()
    assert database.counters.lost == 100


async def test_rows_that_can_never_be_written_take_no_others_with_them(path: Path) -> None:
    database = Database(path, [NOTES], PATIENT)
    database.append([(INSERT, [(1, "a")])])
    database.append([(INSERT, [(1, "again")])])
    database.append([(INSERT, [(2, "b")])])
    await database.flush()
    assert (database.counters.rows, database.counters.lost) == (2, 1)
    await database.close()
    assert read_file(path, notes) == [1, 2]


async def test_after_the_end_nothing_is_taken(path: Path) -> None:
    database = Database(path, [NOTES])
    await database.close()
    assert not database.append([(INSERT, [(1, "a")])])
    with pytest.raises(FailedPrecondition, match="shutting down"):
        await database.write(notes)


async def test_the_writer_tidies_up_until_there_is_nothing_left_to_tidy(path: Path) -> None:
    def tidy(connection: sqlite3.Connection) -> bool:
        return connection.execute("DELETE FROM notes WHERE n IN (SELECT n FROM notes LIMIT 2)").rowcount == 2

    first = Database(path, [NOTES])
    first.append([(INSERT, [(n, "a") for n in range(5)])])
    await first.close()
    database = Database(path, [NOTES], upkeep=Upkeep(tidy, interval=3600))
    wait_until(lambda: not database.buffered and not read_file(path, notes))
    await database.close()


# Files


async def test_an_older_file_gets_what_is_new(path: Path) -> None:
    first = Database(path, [NOTES])
    first.append([(INSERT, [(1, "a")])])
    await first.close()
    newer = Schema("notes", (*NOTES.migrations, ("ALTER TABLE notes ADD COLUMN who TEXT DEFAULT 'nobody'",)))
    other = Schema("colours", (("CREATE TABLE colours (name TEXT)",),))

    second = Database(path, [newer, other])
    assert await second.read(lambda c: c.execute("SELECT * FROM notes").fetchall()) == [(1, "a", "nobody")]
    assert await second.read(lambda c: c.execute("SELECT * FROM colours").fetchall()) == []
    await second.close()
    with pytest.raises(ConfigurationError, match=r'newer Offramp \(tables "notes" have version 2, this one knows 1\)'):
        Database(path, [NOTES])


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    broken = Schema("notes", (*NOTES.migrations, ("CREATE TABLE half (n)", "no such statement")))
    with pytest.raises(ConfigurationError, match="cannot be used: near"):
        Database(path, [broken])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("dear diary, " * 100)
    with pytest.raises(ConfigurationError, match="damaged or no SQLite database"):
        Database(path, [NOTES])
    assert path.read_text().startswith("dear diary")


def test_another_program_s_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (n)")
    with pytest.raises(ConfigurationError, match="database of another program"):
        Database(path, [NOTES])


async def test_a_damaged_file_is_refused(path: Path) -> None:
    database = Database(path, [NOTES])
    database.append([(INSERT, [(n, "x" * 500) for n in range(500)])])
    await database.close()
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 20))
    with pytest.raises(ConfigurationError, match="damaged"):
        Database(path, [NOTES])


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used: No such file or directory"):
        Database(tmp_path / "no" / "folder" / "state.sqlite3", [NOTES])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="unable to open database file"):
        Database(tmp_path / "folder", [NOTES])


async def test_two_servers_cannot_share_a_file(path: Path) -> None:
    first = Database(path, [NOTES])
    with pytest.raises(ConfigurationError, match=f"in use by another server \\(process {os.getpid()}\\)"):
        Database(path, [NOTES])
    await first.close()
    await Database(path, [NOTES]).close()


WRITER_PROCESS = """
import sys, asyncio, pathlib
from offramp_server.store.database import Database
from offramp_server.store.schema import Schema
from offramp_server.store.writer import Buffering

async def main():
    schema = Schema("notes", (("CREATE TABLE notes (n INTEGER PRIMARY KEY, words TEXT NOT NULL)",),))
    database = Database(pathlib.Path(sys.argv[1]), [schema], Buffering(0.001, 50))
    n = 0
    while True:
        while database.append([("INSERT INTO notes VALUES (?, ?)", [(n, "x" * 200)])]):
            n += 1
            if n % 500 == 0:
                await database.flush()
                print(n, flush=True)

asyncio.run(main())
"""


def test_a_killed_server_loses_the_uncommitted_tail_and_nothing_else(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER_PROCESS, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    promised = 0
    while promised < 3000:
        promised = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    promised = int(rest[-1]) if rest else promised
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL

    # The lock went with the process, the file is whole, and no row is missing between two others.
    database = Database(path, [NOTES])
    kept = read_file(path, notes)
    assert kept == list(range(len(kept)))
    assert len(kept) >= promised
    asyncio.run(database.close())
