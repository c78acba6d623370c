"""Batches through a real worker process, and what is told of them when it hangs, dies or writes nonsense."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from eventually import PATIENCE
from model_repository import write_add_sub
from offramp_server.repository.reader import read_model
from offramp_server.scheduling.batch import Batch, Executor
from offramp_server.scheduling.work import Timing, Work
from offramp_server.workers import frame
from offramp_server.workers.host import Placement
from offramp_server.workers.process_executor import ProcessExecutor
from open_inference.tensor import Tensor

HANDLE = 1


class Sink:
    """Notes the reports: the first value of each answer, "failed", or "lost"."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[tuple[Batch, float | str]] = asyncio.Queue()

    def completed(self, executor: Executor, batch: Batch, outputs: Sequence[Tensor], timing: Timing) -> None:
        self.reports.put_nowait((batch, float(outputs[0].numpy().ravel()[0])))

    def failed(self, executor: Executor, batch: Batch, message: str) -> None:
        self.reports.put_nowait((batch, "failed"))

    def lost(self, executor: Executor, batches: Sequence[Batch], computing: bool) -> None:
        for batch in batches:
            self.reports.put_nowait((batch, "lost"))

    async def next(self) -> tuple[Batch, float | str]:
        return await asyncio.wait_for(self.reports.get(), PATIENCE)


@asynccontextmanager
async def worker(repository: Path, hang_timeout: float = 0.0) -> AsyncIterator[tuple[ProcessExecutor, Sink]]:
    """One that holds a model which adds 1."""
    write_add_sub(repository, offset=1)
    sink = Sink()
    executor = ProcessExecutor("test", sink, lambda member, reason: None, PATIENCE, hang_timeout, 1 << 20)
    try:
        await executor.start()
        await executor.load(HANDLE, read_model(repository, "add_sub")[0], Placement("cpu", 1))
        yield executor, sink
    finally:
        await executor.close()


def batch(value: float, rows: int = 1) -> Batch:
    array = np.full((rows, 4), value, dtype=np.float32)
    future = asyncio.get_running_loop().create_future()
    return Batch(HANDLE, [Work([Tensor.from_numpy("x", array)], rows, (4,), future)], rows, time.monotonic_ns())


async def test_batches_of_any_size_come_back_in_the_order_in_which_they_were_sent(repository: Path) -> None:
    async with worker(repository) as (executor, sink):
        # The third is larger than a slab is at first.
        sent = [batch(value, rows) for value, rows in enumerate((1, 8, 100_000, 2, 1, 5, 1))]
        ahead = sent[: executor.slots]
        for one in ahead:
            executor.submit(one)
        answers = []
        for following in [*sent[executor.slots :], *[None] * executor.slots]:
            answers.append(await sink.next())
            if following is not None:
                executor.submit(following)
        assert answers == [(one, index + 1.0) for index, one in enumerate(sent)]
        assert executor.in_flight == 0


async def test_a_batch_that_cannot_be_handed_over_fails_and_the_next_ones_are_computed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker(repository) as (executor, sink):
        first, refused, last = batch(1), batch(2), batch(3)
        executor.submit(first)
        with monkeypatch.context() as patch:
            patch.setattr(frame, "write_request", _no_memory)
            executor.submit(refused)
        executor.submit(last)
        reports = dict([await sink.next() for _ in range(3)])
        assert reports == {first: 2.0, refused: "failed", last: 4.0}


async def test_an_answer_that_makes_no_sense_fails_its_batch_and_not_the_next(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker(repository) as (executor, sink):
        with monkeypatch.context() as patch:
            patch.setattr(frame, "read_outcome", _nonsense)
            executor.submit(batch(1))
            assert (await sink.next())[1] == "failed"
        executor.submit(batch(2))
        assert (await sink.next())[1] == 3.0


async def test_what_a_worker_had_answered_when_it_died_is_not_lost(repository: Path) -> None:
    async with worker(repository) as (executor, sink):
        # Nobody listens until it is dead.
        asyncio.get_running_loop().remove_reader(executor._responses)
        answered = batch(1)
        executor.submit(answered)
        ready, _, _ = await asyncio.to_thread(select.select, [executor._responses], [], [], PATIENCE)
        assert ready
        assert executor.process_id is not None
        os.kill(executor.process_id, signal.SIGSTOP)
        unanswered = batch(2)
        executor.submit(unanswered)
        executor.kill("the test says so")
        assert [await sink.next(), await sink.next()] == [(answered, 2.0), (unanswered, "lost")]


async def test_a_worker_that_computes_for_too_long_is_killed_and_its_batch_is_reported(repository: Path) -> None:
    async with worker(repository, hang_timeout=0.1) as (executor, sink):
        assert executor.process_id is not None
        os.kill(executor.process_id, signal.SIGSTOP)
        stuck = batch(1)
        executor.submit(stuck)
        assert await sink.next() == (stuck, "lost")


def _no_memory(*arguments: object) -> None:
    raise OSError(12, "Cannot allocate memory")


def _nonsense(*arguments: object) -> None:
    raise ValueError("nonsense")
