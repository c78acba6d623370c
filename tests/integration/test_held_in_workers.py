"""Hidden state stays in a worker between the stages of a network, in a process and in a thread."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from eventually import PATIENCE, _poll, eventually_here
from model_repository import write_add_sub
from offramp_adapters.routes.held import Held
from offramp_adapters.routes.plan import StateLost
from offramp_adapters.routes.rows import take
from offramp_server.config import Settings, WorkerSettings
from offramp_server.core import Core, build_core
from offramp_server.inference import InferRequest
from offramp_server.workers.process_executor import ProcessExecutor
from offramp_server.workers.thread_executor import ThreadExecutor
from open_inference.tensor import Tensor

Mode = Literal["process", "in-process"]
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)

both_modes = pytest.mark.parametrize("mode", ["process", "in-process"])


@dataclass(frozen=True)
class Stages:
    """y = x + 1, z = x - 1, and a second stage of which y = x + 10."""

    core: Core

    async def run(self, name: str, inputs: Sequence[Tensor], keep: Sequence[str] = ()) -> list[Tensor]:
        request = InferRequest(name, inputs, keep=frozenset(keep))
        answer = await self.core.serving._runner.run(self.core.models.get(name, ""), request)
        return list(answer.outputs)

    async def first(self, rows: np.ndarray, keep: Sequence[str] = ("y",)) -> list[Tensor]:
        return await self.run("first", [Tensor.from_numpy("x", rows)], keep)

    async def second(self, state: Tensor) -> np.ndarray:
        state.name = "x"
        outputs = await self.run("second", [state])
        return outputs[0].numpy()

    @property
    def executor(self) -> ProcessExecutor | ThreadExecutor:
        [executor] = self.core.backend.groups[0].actives
        assert isinstance(executor, ProcessExecutor | ThreadExecutor)
        return executor

    async def kept(self) -> int:
        """Batches of which the worker has something."""
        if isinstance(self.executor, ThreadExecutor):
            return len(self.executor._host.kept)
        return int((await self.executor._call({"do": "ping"}, PATIENCE))["kept"])

    async def until_nothing_is_kept(self) -> None:
        async def nothing() -> bool:
            return await self.kept() == 0

        await _poll(nothing, PATIENCE)
        assert self.executor.held.bytes == 0


@asynccontextmanager
async def stages(repository: Path, mode: Mode, max_held_bytes: int = 1 << 20) -> AsyncIterator[Stages]:
    write_add_sub(repository, "first", offset=1)
    write_add_sub(repository, "second", offset=10)
    core = build_core(repository, Settings(workers=WorkerSettings(mode=mode, max_held_bytes=max_held_bytes)))
    try:
        await core.load()
        yield Stages(core)
    finally:
        await core.close()


@both_modes
async def test_a_later_stage_computes_with_rows_that_never_left_the_worker(repository: Path, mode: Mode) -> None:
    async with stages(repository, mode) as two:
        state, travelled = await two.first(ROWS)
        assert isinstance(state, Held)
        assert (state.shape, len(state.data)) == ((3, 4), 0)
        assert travelled.numpy().tolist() == (ROWS - 1).tolist()
        assert await two.kept() == 1
        [survivors] = take([state], [2, 0])
        assert (await two.second(survivors)).tolist() == (ROWS[[2, 0]] + 11).tolist()
        assert (await two.second(state)).tolist() == (ROWS + 11).tolist()


@both_modes
async def test_a_worker_that_is_idle_lets_go_of_what_nobody_needs(repository: Path, mode: Mode) -> None:
    async with stages(repository, mode) as two:
        await two.first(ROWS)
        await two.until_nothing_is_kept()


@both_modes
async def test_so_does_one_that_is_busy_and_after_cancellations(repository: Path, mode: Mode) -> None:
    async def both_stages(two: Stages, value: int) -> None:
        state, _ = await two.first(ROWS + value)
        [survivors] = take([state], [1])
        del state
        assert (await two.second(survivors)).tolist() == [(ROWS[1] + value + 11).tolist()]

    async with stages(repository, mode) as two:
        tasks = [asyncio.create_task(both_stages(two, value)) for value in range(100)]
        for position in range(0, len(tasks), 3):
            await asyncio.sleep(0)
            tasks[position].cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        # An end that is an error knows the frames that it has come through, and what they refer to.
        del ends
        tasks.clear()
        await two.until_nothing_is_kept()


@both_modes
async def test_where_there_is_no_room_state_travels_and_the_answers_are_the_same(repository: Path, mode: Mode) -> None:
    async with stages(repository, mode, max_held_bytes=0) as two:
        state, _ = await two.first(ROWS)
        assert not isinstance(state, Held)
        [survivors] = take([state], [2, 0])
        assert (await two.second(survivors)).tolist() == (ROWS[[2, 0]] + 11).tolist()


async def test_state_of_a_worker_that_is_killed_is_lost_and_can_be_computed_again(repository: Path) -> None:
    async with stages(repository, "process") as two:
        state, _ = await two.first(ROWS)
        killed = two.executor
        assert killed.process_id is not None
        os.kill(killed.process_id, signal.SIGKILL)
        await eventually_here(lambda: not killed.alive)
        with pytest.raises(StateLost, match=killed.name):
            await two.second(state)
        state, _ = await two.first(ROWS)
        assert (await two.second(state)).tolist() == (ROWS + 11).tolist()
