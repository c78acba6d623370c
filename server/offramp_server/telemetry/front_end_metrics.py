"""Front ends that are processes of their own, as Prometheus' families. A server without any has none of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from offramp_server.telemetry.gauges import FrontEndGauges
from offramp_server.telemetry.process import cpu_seconds, resident_bytes

_LABELS = ("front_end",)


def front_end_families(gauges: FrontEndGauges) -> Iterator[Metric]:
    """By the front end's number, which whoever takes its place has as well."""
    if not gauges.processes:
        return
    connections = GaugeMetricFamily(
        "offramp_front_end_connections", "Connections, as each front end said last.", labels=_LABELS
    )
    cpu = CounterMetricFamily("offramp_front_end_cpu_seconds", "CPU time, user and system.", labels=_LABELS)
    memory = GaugeMetricFamily("offramp_front_end_resident_memory_bytes", "Resident memory.", labels=_LABELS)
    for process in gauges.processes:
        key = (str(process.number),)
        connections.add_metric(key, process.connections)
        if process.pid is not None:
            _add(cpu, key, cpu_seconds(process.pid))
            _add(memory, key, resident_bytes(process.pid))
    yield from (connections, cpu, memory, _restarts(gauges.restarts))


def _add(family: CounterMetricFamily | GaugeMetricFamily, key: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        family.add_metric(key, value)


def _restarts(restarts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "offramp_front_end_restarts", "Front ends that were started again, by reason.", labels=("reason",)
    )
    for reason, count in restarts.items():
        family.add_metric((reason,), count)
    return family
