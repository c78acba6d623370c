"""The front end's side of a worker process, with real processes that load no model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import psutil
import pytest
from eventually import PATIENCE, eventually_here
from offramp_server.errors import LoadError
from offramp_server.workers.host import Placement
from offramp_server.workers.process_executor import ProcessExecutor
from scheduling_fakes import spec


class Sink:
    """Notes what an executor reports."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str | bool]] = []

    def completed(self, *report: Any) -> None:
        self.reports.append(("completed", ""))

    def failed(self, executor: Any, batch: Any, message: str) -> None:
        self.reports.append(("failed", message))

    def lost(self, executor: Any, batches: Any, computing: bool) -> None:
        self.reports.append(("lost", computing))


def executor(sink: Sink, deaths: list[str], cpus: Sequence[int] = ()) -> ProcessExecutor:
    return ProcessExecutor("test", sink, lambda member, reason: deaths.append(reason), PATIENCE, 0.0, 0, cpus)


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


async def test_a_worker_that_is_slow_to_end_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, deaths = Sink(), list[str]()
    worker = executor(sink, deaths)
    await worker.start()
    may_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    wait = subprocess.Popen.wait

    def wait_for_the_loop(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        # What a process whose driver frees gigabytes does: it ends some time after its sockets have closed.
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(PATIENCE)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_the_loop)
    worker.kill("the test says so")
    loop.call_later(0, may_end.set)
    await eventually_here(lambda: bool(deaths))
    assert deaths == ["signal_9"]
    assert sink.reports == [("lost", False)]
    await worker.close()


async def test_a_worker_that_does_not_end_does_not_keep_the_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = executor(Sink(), [])
    await worker.start()

    def never(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("worker", timeout or 0)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", never)
        await worker.close()
    assert "does not end" in caplog.text
    await worker.close()


async def test_a_worker_that_sends_nonsense_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = list[str]()
    worker = executor(Sink(), deaths)
    await worker.start()
    monkeypatch.setattr("offramp_server.workers.process_executor.json.loads", lambda line: ["no", "message"])
    with pytest.raises(LoadError, match="died"):
        await worker.unload(1)
    assert deaths == ["signal_9"]
    await worker.close()


async def test_a_worker_that_does_not_come_back_from_a_load_is_killed_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaths = list[str]()
    worker = executor(Sink(), deaths)
    await worker.start()
    assert worker.process_id is not None
    os.kill(worker.process_id, signal.SIGSTOP)
    monkeypatch.setattr(worker, "_startup_timeout", 0.05)
    with pytest.raises(LoadError, match="did not answer within"):
        await worker.load(1, spec(), Placement("cpu", 1))
    await eventually_here(lambda: bool(deaths))
    assert not worker.holds(1)
    await worker.close()


async def test_a_worker_stays_on_the_processors_that_it_is_given_and_its_threads_as_well() -> None:
    cpu = min(os.sched_getaffinity(0))
    worker = executor(Sink(), [], [cpu])
    await worker.start()
    try:
        threads = os.listdir(f"/proc/{worker.process_id}/task")
        assert len(threads) > 1
        assert all(os.sched_getaffinity(int(thread)) == {cpu} for thread in threads)
    finally:
        await worker.close()


async def test_a_worker_whose_processors_are_gone_runs_wherever_it_can() -> None:
    worker = executor(Sink(), [], [4095])
    await worker.start()
    try:
        assert worker.process_id is not None
        assert os.sched_getaffinity(worker.process_id) == os.sched_getaffinity(0)
    finally:
        await worker.close()


async def test_a_worker_numbers_devices_as_nvml_does_and_its_libraries_collect_and_round_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "ORT_DISABLE_TELEMETRY": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    for variable in expected:
        monkeypatch.delenv(variable, raising=False)
    worker = executor(Sink(), [])
    await worker.start()
    try:
        environment = psutil.Process(worker.process_id).environ()
        assert expected.items() <= environment.items()
    finally:
        await worker.close()
