"""Metrics of how engines are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from offramp_server.telemetry.gauges import ModelGauges
from offramp_server.telemetry.stats import Stats


def engine_families(stats: Stats, models: Sequence[ModelGauges]) -> Iterator[Metric]:
    never = dict.fromkeys((model.model for model in models), 0)
    yield _counter("offramp_engine_tunings", "Times that engines were compared.", "model", never | stats.engine_tunings)
    yield _counter("offramp_engine_builds", "Engines that were built.", "model", never | stats.engine_builds)
    lookups = {"hit": 0, "miss": 0} | stats.engine_lookups
    yield _counter("offramp_engine_cache_lookups", "Searches for a remembered engine.", "outcome", lookups)


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family
