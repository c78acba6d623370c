"""The front end's side of a worker process, with real processes that load no model."""

from __future__ import annotations

import os
from typing import Any

import pytest
from offramp_server.errors import LoadError
from offramp_server.workers.process_executor import ProcessExecutor


class Sink:
    """Notes what an executor reports."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []

    def completed(self, *report: Any) -> None:
        self.reports.append(("completed", ""))

    def failed(self, executor: Any, batch: Any, message: str) -> None:
        self.reports.append(("failed", message))

    def lost(self, executor: Any, batches: Any, reason: str) -> None:
        self.reports.append(("lost", reason))


def executor(sink: Sink, deaths: list[str]) -> ProcessExecutor:
    return ProcessExecutor("test", sink, lambda member, reason: deaths.append(reason), 60.0, 0.0)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refuse(*arguments: Any, **options: Any) -> Any:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("call", ["os.eventfd", "Slab.create", "subprocess.Popen"])
async def test_a_worker_that_the_system_refuses_is_a_load_error_and_leaves_no_descriptor_open(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    worker = executor(Sink(), [])
    with monkeypatch.context() as patch:
        patch.setattr(f"offramp_server.workers.process_executor.{call}", refuse)
        with pytest.raises(LoadError, match="Too many open files"):
            await worker.start()
    await worker.close()
    assert descriptors() == before
