"""What routes do, as Prometheus' families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from offramp_adapters.routes.strategy import Level
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from offramp_server.telemetry.gauges import RouteGauges
from offramp_server.telemetry.stats import ArmStats, RouteStats, Stats

ARM_LABELS = ("route", "arm")


def load_families(stats: Stats, level: int) -> Iterator[Metric]:
    """`level` is the one now."""
    yield GaugeMetricFamily(
        "offramp_load_level", "How loaded the server is: 0 idle, 1 normal, 2 busy, 3 overloaded.", value=level
    )
    changes = CounterMetricFamily("offramp_load_level_changes", "Changes of the level of load.", labels=("from", "to"))
    neighbours = [*pairwise(Level), *pairwise(reversed(Level))]
    for key in {**dict.fromkeys(neighbours), **dict.fromkeys(stats.load_level_changes)}:
        changes.add_metric([level.name.lower() for level in key], stats.load_level_changes.get(key, 0))
    yield changes


def arm_families(stats: Stats, routes: Iterable[RouteGauges]) -> Iterator[Metric]:
    """Of requests that were assigned to an arm that is there now, zeros for one that was never assigned any: a rate
    needs the first increment. Requests that asked for an arm are no part of the experiment."""
    requests = CounterMetricFamily(
        "offramp_route_arm_requests",
        "Requests that a split assigned to an arm, by gRPC status.",
        labels=(*ARM_LABELS, "status"),
    )
    seconds = HistogramMetricFamily(
        "offramp_route_arm_duration_seconds",
        "Time that an arm took to answer, of requests that were assigned to it and answered.",
        labels=ARM_LABELS,
        unit="seconds",
    )
    for route, arm in ((each.route, arm) for each in routes for arm in each.arms):
        known = stats.routes.get(route, RouteStats()).arms.get(arm, ArmStats())
        for status, count in ({"ok": 0} | known.requests).items():
            requests.add_metric((route, arm, status), count)
        seconds.add_metric((route, arm), known.request_seconds.cumulative(), known.request_seconds.sum)
    yield from (requests, seconds)


def setting_families(routes: Iterable[RouteGauges]) -> Iterator[Metric]:
    settings = GaugeMetricFamily(
        "offramp_route_setting",
        "What can be changed of a route while it runs: thresholds, weights, shares, the rate of audits.",
        labels=("route", "setting"),
    )
    for route in routes:
        for key, value in route.settings.items():
            settings.add_metric((route.route, key), value)
    yield settings
