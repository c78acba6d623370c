"""Metrics of GPUs are read when somebody scrapes, and hold up nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from eventually import PATIENCE
from machine_fakes import FakeGpu, FakeNvml
from offramp_server.telemetry.gauges import Gauges
from offramp_server.telemetry.gpu_monitor import GpuMonitor
from offramp_server.telemetry.prometheus import Exposition
from offramp_server.telemetry.stats import Stats
from prometheus_client.parser import text_string_to_metric_families as parse_text

GAUGES = Gauges(lambda: True, lambda: 0, list, list, lambda: 1)
H100 = {"device": "cuda:0", "name": "NVIDIA H100 80GB HBM3"}
UUID = {"gpu_uuid": "GPU-11111111-aaaa"}


@contextmanager
def monitoring(library: FakeNvml, patience: float = PATIENCE) -> Iterator[GpuMonitor]:
    monitor = GpuMonitor(library, {}, patience)
    yield monitor
    monitor.close()


async def scrape(monitor: GpuMonitor, *groups: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples of GPUs by name."""
    body, _ = await Exposition(Stats(), GAUGES, monitor.readings).render("", groups)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            if "_gpu_" in sample.name:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def test_a_scrape_has_what_the_devices_are_doing_under_both_kinds_of_names() -> None:
    with monitoring(FakeNvml()) as monitor:
        assert await scrape(monitor) == {
            "offramp_gpu_utilization_ratio": [(H100, 0.42)],
            "offramp_gpu_memory_used_bytes": [(H100, 3.0 * 2**30)],
            "offramp_gpu_memory_total_bytes": [(H100, 80.0 * 2**30)],
            "offramp_gpu_power_watts": [(H100, 350.25)],
            "offramp_gpu_temperature_celsius": [(H100, 61.0)],
            "nv_gpu_utilization": [(UUID, 0.42)],
            "nv_gpu_memory_total_bytes": [(UUID, 80.0 * 2**30)],
            "nv_gpu_memory_used_bytes": [(UUID, 3.0 * 2**30)],
            "nv_gpu_power_usage": [(UUID, 350.25)],
        }


async def test_each_scrape_reads_anew_and_the_library_is_opened_once() -> None:
    gpu = FakeGpu(percent=10)
    library = FakeNvml([gpu])
    with monitoring(library) as monitor:
        await scrape(monitor)
        gpu.percent = 90
        assert (await scrape(monitor))["nv_gpu_utilization"] == [(UUID, 0.9)]
        assert library.opened == 1
    assert library.opened == 0


async def test_what_one_device_does_not_tell_has_no_sample_and_the_other_one_has() -> None:
    silent = FakeGpu("NVIDIA L4", "GPU-2", lacks=frozenset({"power"}))
    with monitoring(FakeNvml([FakeGpu(), silent])) as monitor:
        found = await scrape(monitor, "offramp")
    assert found["offramp_gpu_power_watts"] == [(H100, 350.25)]
    assert [labels["device"] for labels, _ in found["offramp_gpu_utilization_ratio"]] == ["cuda:0", "cuda:1"]


async def test_without_a_driver_there_are_no_such_metrics_and_nobody_asks_again() -> None:
    asked = 0

    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            nonlocal asked
            asked += 1
            super().nvmlInit()

    with monitoring(NoDriver(failure=12)) as monitor:
        assert [await scrape(monitor), await scrape(monitor)] == [{}, {}]
    assert asked == 1


async def test_a_driver_that_is_loaded_later_is_asked_again() -> None:
    library = FakeNvml(failure=9)
    with monitoring(library) as monitor:
        assert await scrape(monitor) == {}
        library.failure = None
        assert "nv_gpu_utilization" in await scrape(monitor)


async def test_what_nobody_expects_of_the_driver_costs_its_metrics_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strange(FakeNvml):
        def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with monitoring(Strange()) as monitor, caplog.at_level(logging.INFO):
        assert [await scrape(monitor), await scrape(monitor)] == [{}, {}]
    [record] = caplog.records
    assert record.getMessage().startswith("no metrics of GPUs: UnicodeDecodeError: ")


async def test_a_group_without_gpus_asks_none() -> None:
    library = FakeNvml()
    with monitoring(library) as monitor:
        assert await scrape(monitor, "process") == {}
        assert library.opened == 0


class Stuck(FakeNvml):
    """A driver that does not answer until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.asked = threading.Event(), threading.Event()
        self.calls = 0

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> Any:
        self.calls += 1
        self.asked.set()
        assert self.go_on.wait(PATIENCE)
        return super().nvmlDeviceGetUtilizationRates(handle)


async def test_the_loop_goes_on_while_the_driver_answers_slowly() -> None:
    library = Stuck()
    with monitoring(library) as monitor:
        asking = asyncio.create_task(scrape(monitor))
        assert await asyncio.to_thread(library.asked.wait, PATIENCE)
        library.go_on.set()
        assert "nv_gpu_utilization" in await asking


async def test_a_driver_that_does_not_answer_costs_its_metrics_and_not_the_scrape() -> None:
    library = Stuck()
    with monitoring(library, patience=0.0) as monitor:
        assert [await scrape(monitor), await scrape(monitor)] == [{}, {}]
        # It is not asked again before it has answered.
        assert library.calls <= 1
        reading = monitor._reading
        library.go_on.set()
        assert reading is not None
        reading.result(PATIENCE)


async def test_a_monitor_that_is_closed_while_the_driver_is_stuck_does_not_wait_for_it() -> None:
    library = Stuck()
    with monitoring(library, patience=0.0) as monitor:
        await scrape(monitor)
        reading = monitor._reading
    library.go_on.set()
    assert reading is not None
    reading.result(PATIENCE)
