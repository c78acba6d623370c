"""What routes see of their own answers, and the store that keeps it, as Prometheus' families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from offramp_server.telemetry.gauges import RouteGauges, StoreGauges
from offramp_server.telemetry.stats import RouteStats, Stats

# Of an audit.
OUTCOMES = ("agreed", "disagreed", "lost")


def seen_families(stats: Stats, routes: Sequence[RouteGauges]) -> Iterator[Metric]:
    """Of every route that is there, zeros for one that was never called: a rate needs the first increment."""
    counters = {route.route: RouteStats() for route in routes} | stats.routes
    yield _durations(counters)
    yield from _exits(counters, {route.route: route.exits for route in routes})
    yield from _audits(counters)
    yield _shadows(counters)
    yield from _epochs(routes)


def _durations(routes: dict[str, RouteStats]) -> Metric:
    family = HistogramMetricFamily(
        "offramp_route_request_duration_seconds",
        "Time that a route took to answer a request, of requests that were answered.",
        labels=("route",),
        unit="seconds",
    )
    for name, route in routes.items():
        family.add_metric((name,), route.request_seconds.cumulative(), route.request_seconds.sum)
    return family


def _exits(routes: dict[str, RouteStats], names: dict[str, tuple[str, ...]]) -> Iterator[Metric]:
    exits = CounterMetricFamily("offramp_route_exits", "Items by the stage that answered.", labels=("route", "exit"))
    deferrals = CounterMetricFamily(
        "offramp_route_deferrals", "Times that an item was sent on to a deeper stage.", labels=("route",)
    )
    for name, route in routes.items():
        for exit, count in (dict.fromkeys(names.get(name, ()), 0) | route.seen.exits).items():
            exits.add_metric((name, exit), count)
        deferrals.add_metric((name,), route.seen.deferrals)
    yield from (exits, deferrals)


def _audits(routes: dict[str, RouteStats]) -> Iterator[Metric]:
    audits = CounterMetricFamily(
        "offramp_audits",
        "Items that were answered early and were to be compared with the reference.",
        labels=("route", "outcome"),
    )
    disagreements = CounterMetricFamily(
        "offramp_disagreements", "Answers with which a reference or a shadow disagreed.", labels=("route", "kind")
    )
    for name, route in routes.items():
        for outcome in OUTCOMES:
            audits.add_metric((name, outcome), route.seen.audits.get(outcome, 0))
        shadows = sum(count for (*_, outcome), count in route.seen.shadows.items() if outcome == "disagreed")
        disagreements.add_metric((name, "audit"), route.seen.audits.get("disagreed", 0))
        disagreements.add_metric((name, "shadow"), shadows)
    yield from (audits, disagreements)


def _shadows(routes: dict[str, RouteStats]) -> Metric:
    family = CounterMetricFamily(
        "offramp_shadows",
        "Items that a shadow was to answer as well, beside an arm.",
        labels=("route", "arm", "shadow", "outcome"),
    )
    for name, route in routes.items():
        for key, count in route.seen.shadows.items():
            family.add_metric((name, *key), count)
    return family


def _epochs(routes: Sequence[RouteGauges]) -> Iterator[Metric]:
    epochs = GaugeMetricFamily("offramp_route_epoch", "The epoch of the route's evidence.", labels=("route",))
    ratio = GaugeMetricFamily(
        "offramp_route_disagreement_ratio",
        "Share of this epoch's answers that differ from the reference's, estimated from audits.",
        labels=("route",),
    )
    for route in routes:
        epochs.add_metric((route.route,), route.epoch)
        if route.disagreement is not None:
            ratio.add_metric((route.route,), route.disagreement)
    yield from (epochs, ratio)


def follow_up_families(stats: Stats, under_way: int, held_bytes: int) -> Iterator[Metric]:
    offered = CounterMetricFamily(
        "offramp_follow_ups_offered", "Audits and shadow copies that answers asked for.", labels=("route", "kind")
    )
    ended = CounterMetricFamily(
        "offramp_follow_ups",
        "Audits and shadow copies that were done, or why they were dropped.",
        labels=("route", "kind", "outcome"),
    )
    for key, count in stats.follow_ups_offered.items():
        offered.add_metric(key, count)
    for outcome, count in stats.follow_ups.items():
        ended.add_metric(outcome, count)
    yield from (offered, ended)
    yield GaugeMetricFamily("offramp_follow_ups_under_way", "Audits and shadow copies under way.", value=under_way)
    yield GaugeMetricFamily(
        "offramp_follow_ups_held_bytes", "Inputs that are kept for audits and shadow copies.", value=held_bytes
    )


def store_families(store: StoreGauges) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "offramp_store_durable", "1 if the store outlasts the server, 0 if it is in memory.", value=store.durable
    )
    rows = CounterMetricFamily(
        "offramp_store_rows",
        "Rows that were written, that the store refused, or that came faster than it takes them.",
        labels=("outcome",),
    )
    for outcome, count in (("written", store.written), ("lost", store.lost), ("overflow", store.overflowed)):
        rows.add_metric((outcome,), count)
    yield rows
    yield CounterMetricFamily("offramp_store_errors", "Transactions that failed.", value=store.errors)
    yield GaugeMetricFamily("offramp_store_buffered_rows", "Rows that wait to be written.", value=store.buffered)
    yield GaugeMetricFamily(
        "offramp_store_held_requests",
        "Requests whose observations wait for those of an older request.",
        value=store.held_requests,
    )
