"""Real worker processes that run out of real memory."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from built_engines import build
from engine_models import export_pt2, model_spec
from eventually import PATIENCE
from model_repository import write_spread
from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import ModelSpec, WarmupSettings
from offramp_server.repository.reader import read_model
from offramp_server.scheduling.batch import Batch, Executor
from offramp_server.scheduling.work import Timing, Work
from offramp_server.workers.host import Placement
from offramp_server.workers.process_executor import ProcessExecutor
from open_inference.tensor import Tensor
from torch import nn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")


class Sink:
    def __init__(self) -> None:
        self.reports: asyncio.Queue[tuple[list[list[float]] | str, int]] = asyncio.Queue()

    def completed(self, executor: Executor, batch: Batch, outputs: Sequence[Tensor], timing: Timing) -> None:
        self.reports.put_nowait((outputs[0].numpy().tolist(), timing.splits))

    def failed(self, executor: Executor, batch: Batch, message: str) -> None:
        self.reports.put_nowait((message, 0))

    def lost(self, executor: Executor, batches: Sequence[Batch], computing: bool) -> None:
        self.reports.put_nowait(("lost", 0))

    async def next(self) -> tuple[list[list[float]] | str, int]:
        return await asyncio.wait_for(self.reports.get(), PATIENCE)


def limit_memory(executor: ProcessExecutor, headroom: int) -> None:
    process = executor.process_id
    assert process is not None
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    resource.prlimit(process, resource.RLIMIT_AS, (pages * resource.getpagesize() + headroom, resource.RLIM_INFINITY))


@asynccontextmanager
async def worker(
    repository: Path, spec: ModelSpec | None = None, choice: EngineChoice | None = None
) -> AsyncIterator[tuple[ProcessExecutor, Sink]]:
    """One whose model needs 64 MiB for a row, unless another is given."""
    if spec is None:
        write_spread(repository)
        spec = read_model(repository, "spread")[0]
    sink = Sink()
    executor = ProcessExecutor("test", sink, lambda member, reason: None, PATIENCE, 0.0, 1 << 20)
    try:
        await executor.start()
        await executor.load(1, spec, Placement("cpu", 1, choice))
        yield executor, sink
    finally:
        await executor.close()


def batch(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Batch:
    future = asyncio.get_running_loop().create_future()
    work = Work([Tensor.from_numpy("x", array)], len(array), (4,), future)
    return Batch(1, [work], len(array), time.monotonic_ns())


async def test_a_batch_that_does_not_fit_is_answered_in_parts_by_the_same_worker(repository: Path) -> None:
    async with worker(repository) as (executor, sink):
        limit_memory(executor, 512 << 20)
        array = np.random.default_rng(0).random((16, 4), np.float32)
        for _ in range(2):
            executor.submit(batch(array))
            answer, splits = await sink.next()
            assert answer == array.tolist()
            assert splits > 0


async def test_an_item_that_does_not_fit_fails_alone_and_its_worker_goes_on(repository: Path) -> None:
    async with worker(repository) as (executor, sink):
        process = executor.process_id
        limit_memory(executor, 16 << 20)
        array = np.ones((2, 4), np.float32)
        executor.submit(batch(array))
        message, _ = await sink.next()
        assert isinstance(message, str)
        assert 'out of memory on cpu with one item ("x" FP32[1, 4]); send a smaller one' in message
        limit_memory(executor, 512 << 20)
        executor.submit(batch(array))
        assert (await sink.next())[0] == array.tolist()
        assert executor.process_id == process


class Spread(nn.Module):
    """x as it came, by way of two million numbers for each element, which Inductor does not do without."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.unsqueeze(-1) - torch.arange(1 << 21, dtype=torch.float32)
        return torch.cummax(wide, 2).values.amax(2)


# Inductor imports a module that still uses TorchScript.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.timeout(540)
async def test_a_batch_that_does_not_fit_into_a_compiled_package_is_answered_in_parts_too(
    repository: Path, tmp_path: Path
) -> None:
    path = export_pt2(tmp_path / "spread.pt2", Spread(), (torch.zeros(2, 4),))
    spec = replace(model_spec(path, ["x FP32 4"], ["y FP32 4"]), warmup=WarmupSettings(iterations=0))
    choice = build(spec, "aot-inductor", tmp_path)
    async with worker(repository, spec, choice) as (executor, sink):
        limit_memory(executor, 512 << 20)
        array = np.random.default_rng(0).random((16, 4), np.float32)
        executor.submit(batch(array))
        answer, splits = await sink.next()
        assert answer == array.tolist()
        assert splits > 0
