"""The GPUs as Prometheus' families, under our names and under Triton's. What a device does not tell has no sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from offramp_server.machine.nvml import GpuReading

Read = Callable[[GpuReading], float | None]

OURS: tuple[tuple[str, str, Read], ...] = (
    ("offramp_gpu_utilization_ratio", "Share of the time in which some kernel ran.", lambda r: r.utilization),
    ("offramp_gpu_memory_used_bytes", "Memory in use, by whichever process.", lambda r: r.memory_used),
    ("offramp_gpu_memory_total_bytes", "Memory of the device.", lambda r: r.memory_total),
    ("offramp_gpu_power_watts", "Power that the device draws.", lambda r: r.power_watts),
    ("offramp_gpu_temperature_celsius", "Temperature of the device.", lambda r: r.temperature_celsius),
)
TRITONS: tuple[tuple[str, str, Read], ...] = (
    ("nv_gpu_utilization", "Share of the time in which some kernel ran.", lambda r: r.utilization),
    ("nv_gpu_memory_total_bytes", "Memory of the device.", lambda r: r.memory_total),
    ("nv_gpu_memory_used_bytes", "Memory in use, by whichever process.", lambda r: r.memory_used),
    ("nv_gpu_power_usage", "Watts that the device draws.", lambda r: r.power_watts),
)


def gpu_families(readings: Sequence[GpuReading]) -> Iterator[Metric]:
    """By device ("cuda:N") and name. None without devices: a family with no samples says nothing."""
    return _families(OURS, ("device", "name"), lambda r: (r.gpu.device, r.gpu.name), readings)


def triton_gpu_families(readings: Sequence[GpuReading]) -> Iterator[Metric]:
    return _families(TRITONS, ("gpu_uuid",), lambda r: (r.gpu.uuid,), readings)


def _families(
    described: Sequence[tuple[str, str, Read]],
    labels: Sequence[str],
    key: Callable[[GpuReading], Sequence[str]],
    readings: Sequence[GpuReading],
) -> Iterator[Metric]:
    for name, text, read in described if readings else ():
        family = GaugeMetricFamily(name, text, labels=labels)
        for reading in readings:
            value = read(reading)
            if value is not None:
                family.add_metric(key(reading), value)
        yield family
