"""The one thread that writes: commits in batches, keeps what the disk refuses, and carries jobs out in between."""

from __future__ import annotations

import concurrent.futures
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from offramp_server.errors import FailedPrecondition
from offramp_server.store.schema import transaction

log = logging.getLogger("offramp.store")

T = TypeVar("T")
# Runs on the writer's thread, in a transaction that it neither begins nor ends.
Job: TypeAlias = Callable[[sqlite3.Connection], T]
# Statements with "?", each with the values of its rows.
Rows: TypeAlias = Sequence[tuple[str, Sequence[tuple[Any, ...]]]]

# After a failure, until the next attempt. Seconds.
RETRY_SECONDS = 1.0
# A failure that goes on is logged again after this. Seconds.
REPEAT_LOG_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Buffering:
    """When rows become durable, and how many may wait for that."""

    # Longest time that a row waits for its commit, in seconds.
    commit_interval: float = 0.25
    # So many rows are committed at once.
    commit_rows: int = 2000
    # More are not taken.
    limit: int = 100_000


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What the writer does by itself, every `interval` seconds; at once again while `job` returns True."""

    job: Job[bool]
    interval: float = 60.0


@dataclass(slots=True)
class WriterCounters:
    """Written by the writer's thread, read by whoever likes."""

    rows: int = 0
    # Rows that will never be written: SQLite refused them, or the disk was still full when the server stopped.
    lost: int = 0
    commits: int = 0
    # Transactions that failed, repeated attempts included.
    errors: int = 0


class Writer:
    """Its thread begins with it and ends with `stop`, and then `ended` is called on it."""

    def __init__(
        self, connection: sqlite3.Connection, buffering: Buffering, upkeep: Upkeep | None, ended: Callable[[], None]
    ) -> None:
        self.counters = WriterCounters()
        self._connection = connection
        self._buffering = buffering
        self._upkeep = upkeep
        self._ended = ended
        self._changed = threading.Condition()
        # What is not committed yet, oldest first.
        self._waiting: deque[tuple[Rows, int]] = deque()
        self._buffered = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._stopping = False
        # The last attempt to commit failed; when that was logged.
        self._failing = False
        self._logged = -REPEAT_LOG_SECONDS
        self._next_upkeep = 0.0
        self._thread = threading.Thread(target=self._run, name="offramp-store", daemon=True)
        self._thread.start()

    # From other threads

    @property
    def buffered(self) -> int:
        """Rows that wait for their commit."""
        return self._buffered

    def offer(self, rows: Rows) -> bool:
        """False if there is no room for all of them."""
        count = sum(len(values) for _, values in rows)
        with self._changed:
            before, after = self._buffered, self._buffered + count
            if self._stopping or after > self._buffering.limit:
                return False
            self._waiting.append((rows, count))
            self._buffered = after
            if not before or before < self._buffering.commit_rows <= after:
                self._changed.notify()
        return True

    def submit(self, run: Callable[[], T]) -> concurrent.futures.Future[T]:
        """`run` on the thread, once everything that was offered before is committed, or could not be."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def carry_out() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = run()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._changed:
            if self._stopping:
                raise FailedPrecondition("the server is shutting down and stores nothing any more")
            self._jobs.append(carry_out)
            self._changed.notify()
        return future

    def transact(self, job: Job[T]) -> T:
        """Only on the thread. Raises FailedPrecondition if the disk does not take it, and what `job` raises."""
        try:
            with transaction(self._connection):
                return job(self._connection)
        except sqlite3.OperationalError as error:
            self.counters.errors += 1
            raise FailedPrecondition(f"the server could not store it: {error}; nothing was changed") from error

    def stop(self) -> None:
        """Write what is left, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    # On the thread

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping, batch, jobs = self._next()
            if batch:
                self._commit(batch)
            for job in jobs:
                job()
            self._keep_up()
        self._give_up()
        self._connection.close()
        self._ended()

    def _next(self) -> tuple[bool, list[tuple[Rows, int]], list[Callable[[], None]]]:
        """Wait until there is something to do: whether it is the last, rows that are to be committed, jobs."""
        with self._changed:
            if not self._waiting:
                self._changed.wait_for(lambda: self._waiting or self._called, self._idle)
            if self._waiting:
                # More come meanwhile, which then cost no commit of their own.
                pause = RETRY_SECONDS if self._failing else self._buffering.commit_interval
                self._changed.wait_for(lambda: self._called or self._full, pause)
            jobs = list(self._jobs)
            self._jobs.clear()
            return self._stopping, list(self._waiting), jobs

    @property
    def _idle(self) -> float | None:
        """How long to wait for something to do, in seconds; None: for ever."""
        return None if self._upkeep is None else max(0.0, self._next_upkeep - time.monotonic())

    @property
    def _called(self) -> bool:
        return bool(self._jobs) or self._stopping

    @property
    def _full(self) -> bool:
        return self._buffered >= self._buffering.commit_rows and not self._failing

    def _commit(self, batch: list[tuple[Rows, int]]) -> None:
        try:
            with transaction(self._connection):
                for rows, _ in batch:
                    self._write(rows)
        except Exception as error:
            self._failed(error)
            if not _passes(error):
                self._commit_one_by_one(batch)
        else:
            self._failing = False
            self.counters.commits += 1
            self._done(len(batch))

    def _commit_one_by_one(self, batch: list[tuple[Rows, int]]) -> None:
        """Something in it can never be written, which must not take the rest with it."""
        for rows, count in batch:
            try:
                with transaction(self._connection):
                    self._write(rows)
            except Exception as error:
                if _passes(error):
                    return
                log.error("%s rows cannot be stored and are lost: %s", count, error)
                self.counters.lost += count
                self._done(1, written=False)
            else:
                self._done(1)

    def _write(self, rows: Rows) -> None:
        for statement, values in rows:
            self._connection.executemany(statement, values)

    def _done(self, batches: int, written: bool = True) -> None:
        with self._changed:
            count = sum(self._waiting.popleft()[1] for _ in range(batches))
            self._buffered -= count
        if written:
            self.counters.rows += count

    def _failed(self, error: Exception) -> None:
        self._failing = _passes(error)
        self.counters.errors += 1
        if time.monotonic() - self._logged >= REPEAT_LOG_SECONDS:
            self._logged = time.monotonic()
            log.error(
                "the store cannot be written (%s); %s rows wait, requests are answered as before", error, self._buffered
            )

    def _keep_up(self) -> None:
        if self._upkeep is None or self._stopping or time.monotonic() < self._next_upkeep:
            return
        try:
            again = self.transact(self._upkeep.job)
        except Exception as error:
            log.error("the store could not be tidied up: %s", error)
            again = False
        self._next_upkeep = time.monotonic() + (0.0 if again else self._upkeep.interval)

    def _give_up(self) -> None:
        if self._buffered:
            log.error("%s rows could not be stored before the server stopped and are lost", self._buffered)
            self.counters.lost += self._buffered


def _passes(error: Exception) -> bool:
    """Whether the same rows may be written later: the disk is full, the file is locked or out of order."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
