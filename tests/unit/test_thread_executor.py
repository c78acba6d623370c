"""Models in a thread fail as they do in a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pytest
from offramp_server.errors import LoadError
from offramp_server.scheduling.batch import Batch, Executor
from offramp_server.scheduling.work import Timing
from offramp_server.workers.host import Placement
from offramp_server.workers.thread_executor import ThreadExecutor
from open_inference.tensor import Tensor
from tuning_fakes import pt2_spec


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
