"""The server's durable state: one SQLite file, one thread that writes it; the event loop never waits for a disk.

Rows that may be lost when the process is killed go through `append`, which only puts them into a bounded buffer. What
has to be on disk before somebody is told so goes through `write`. Each module that keeps tables brings its `Schema`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from offramp_server.store.file_lock import FileLock, InUse
from offramp_server.store.schema import Schema, StoreUnavailable, connect, connect_to_read, file_errors, prepare
from offramp_server.store.writer import Buffering, Job, Rows, T, Upkeep, Writer, WriterCounters


class Database:
    """Use it from one event loop. Its thread begins with it and ends with `close`."""

    def __init__(
        self,
        path: Path | None,
        schemas: Sequence[Schema],
        buffering: Buffering | None = None,
        upkeep: Upkeep | None = None,
    ) -> None:
        """`path` None: in memory. Raises ConfigurationError for another's file, a damaged or a newer one, and
        StoreUnavailable for one that another server uses or that cannot be written."""
        self.path = path
        lock = None if path is None else _lock(path)
        try:
            with file_errors(path):
                connection = connect(path)
            prepare(connection, path, schemas)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        release = (lambda: None) if lock is None else lock.release
        self._connection = connection
        self._writer = Writer(connection, buffering or Buffering(), upkeep, release)

    @property
    def durable(self) -> bool:
        return self.path is not None

    @property
    def buffered(self) -> int:
        """Rows that wait for their commit."""
        return self._writer.buffered

    @property
    def counters(self) -> WriterCounters:
        return self._writer.counters

    def append(self, rows: Rows) -> bool:
        """Write these soon, in one transaction and after what was appended before. Never waits.

        False: there is no room, and nothing of them will be written.
        """
        return self._writer.offer(rows)

    async def write(self, job: Job[T]) -> T:
        """Run `job` in a transaction of its own, after everything that was appended before; it is on disk when this
        returns.

        Raises FailedPrecondition if the disk does not take it, or what `job` raises; then nothing of it has happened.
        """
        return await asyncio.wrap_future(self._writer.submit(lambda: self._writer.transact(job)))

    async def read(self, job: Job[T]) -> T:
        """Run `job`, which changes nothing, on a snapshot of what is committed."""
        if self.path is None:
            return await asyncio.wrap_future(self._writer.submit(lambda: job(self._connection)))
        return await asyncio.to_thread(read_file, self.path, job)

    def ask(self, job: Job[T]) -> T:
        """What `write` does, for those who may wait: before the server serves."""
        return self._writer.submit(lambda: self._writer.transact(job)).result()

    async def flush(self) -> None:
        """Return once everything that was appended before is committed, or could not be."""
        await asyncio.wrap_future(self._writer.submit(lambda: None))

    async def close(self) -> None:
        """Write what is left, and let the file go."""
        await asyncio.to_thread(self._writer.stop)


def read_file(path: Path, job: Job[T]) -> T:
    """Run `job` on a snapshot of a file that a server may be writing. Raises sqlite3.Error."""
    with closing(connect_to_read(path)) as connection:
        connection.execute("BEGIN")
        return job(connection)


def _lock(path: Path) -> FileLock:
    try:
        return FileLock(path.with_name(path.name + "-lock"))
    except InUse as error:
        holder = f" ({error.holder})" if error.holder else ""
        raise StoreUnavailable(
            f"store.path: {path} is in use by another server{holder}; each server needs a file of its own"
        ) from None
    except OSError as error:
        raise StoreUnavailable(f"store.path: {path} cannot be used: {error.strerror}") from None
