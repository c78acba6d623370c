"""Models in a thread: they fail as they do in a process, and what they cost is what they compute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NoReturn

import pytest
from eventually import PATIENCE
from offramp_server.errors import LoadError
from offramp_server.scheduling.batch import Batch, Executor
from offramp_server.scheduling.work import Timing
from offramp_server.workers.host import Placement
from offramp_server.workers.thread_executor import ThreadExecutor
from open_inference.tensor import Tensor
from scheduling_fakes import work
from tuning_fakes import pt2_spec


class Reports:
    """The timing of the one batch that there is."""

    def __init__(self) -> None:
        self.timing: asyncio.Future[Timing] = asyncio.get_running_loop().create_future()

    def completed(self, executor: Executor, batch: Batch, outputs: Sequence[Tensor], timing: Timing) -> None:
        self.timing.set_result(timing)

    def failed(self, executor: Executor, batch: Batch, message: str) -> NoReturn:
        raise AssertionError(message)

    def lost(self, executor: Executor, batches: Sequence[Batch], computing: bool) -> NoReturn:
        raise AssertionError


class NoSink:
    """Nothing is computed."""

    def completed(self, executor: Executor, batch: Batch, outputs: Sequence[Tensor], timing: Timing) -> NoReturn:
        raise AssertionError

    def failed(self, executor: Executor, batch: Batch, message: str) -> NoReturn:
        raise AssertionError

    def lost(self, executor: Executor, batches: Sequence[Batch], computing: bool) -> NoReturn:
        raise AssertionError


@pytest.mark.parametrize(
    ("error", "said"), [(RuntimeError("CUDA is gone"), "RuntimeError: CUDA is gone"), (LoadError("no"), "^no$")]
)
async def test_whatever_a_library_raises_the_model_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def load(*_: object) -> NoReturn:
        raise error

    executor = ThreadExecutor("worker", NoSink(), 0)
    monkeypatch.setattr(executor._host, "load", load)
    with pytest.raises(LoadError, match=said):
        await executor.load(1, pt2_spec(), Placement("cpu", 1))
    assert not executor.holds(1)


@pytest.mark.parametrize(("device", "all_of_it"), [("cpu", False), ("cuda:0", True)])
async def test_waiting_costs_nothing_but_where_it_is_waited_for_a_device(
    monkeypatch: pytest.MonkeyPatch, device: str, all_of_it: bool
) -> None:
    sink = Reports()
    executor = ThreadExecutor("worker", sink, 0)

    def execute(*_: object) -> tuple[list[Tensor], int, int]:
        """As one that waits for the interpreter for a second."""
        return [], 10**9, 0

    monkeypatch.setattr(executor._host, "load", lambda *_: None)
    monkeypatch.setattr(executor._host, "execute", execute)
    await executor.load(1, pt2_spec(), Placement(device, 1))
    await executor.start()
    executor.submit(Batch(1, [work(1)], 1, time.monotonic_ns()))
    timing = await asyncio.wait_for(sink.timing, PATIENCE)
    await executor.close()
    assert timing.infer_ns == 10**9
    assert (timing.cost_seconds == 1) is all_of_it
