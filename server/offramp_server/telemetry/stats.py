"""Plain counters that the path of a request writes; exporters read them when they are asked.

Everything here runs on the event loop's thread, so nothing locks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from offramp_adapters.routes.strategy import Level

from offramp_server.telemetry.seen_stats import SeenStats

# Seconds. From a tenth of a millisecond, since a student on a fast engine needs less than one.
DURATION_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

# More than anyone serves at one time.
MAX_VERSIONS_PER_MODEL = 64
MAX_ARMS_PER_ROUTE = 64


class Histogram:
    """Counts by upper bound, as Prometheus understands them, before they are added up."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """By upper bound, as Prometheus writes it: what was observed up to there."""
        bounds = [*map(str, self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


@dataclass(slots=True)
class BatchTotals:
    """Executions of one batch size: how many, and nanoseconds in all."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(slots=True)
class ModelStats:
    """What happened to one version of one model since the server started, reloads included."""

    # Requests and items that were answered.
    success_count: int = 0
    success_ns: int = 0
    item_count: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    # Requests that were not, by reason: a gRPC status name in lower case.
    failures: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    failure_ns: int = 0
    batches: defaultdict[int, BatchTotals] = field(default_factory=lambda: defaultdict(BatchTotals))
    # How often a batch, or a part of one, was cut in two because it needed more memory than there was.
    out_of_memory_splits: int = 0
    # Milliseconds since the epoch; 0: never.
    last_inference_ms: int = 0
    request_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS))
    preprocess_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS))
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS))
    batch_items: Histogram = field(default_factory=lambda: Histogram(SIZE_BUCKETS))

    def answered(self, items: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int, total_ns: int) -> None:
        """One request was answered; the compute parts are those of its whole batch, as Triton counts them."""
        self.success_count += 1
        self.success_ns += total_ns
        self.item_count += items
        self.queue_ns += queue_ns
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns
        self.request_seconds.observe(total_ns / 1e9)
        self.queue_seconds.observe(queue_ns / 1e9)

    def failed(self, reason: str, total_ns: int) -> None:
        """One request was refused, cancelled, expired or could not be computed."""
        self.failures[reason] += 1
        self.failure_ns += total_ns

    def executed(self, items: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """One batch came back from a worker."""
        totals = self.batches[items]
        totals.count += 1
        totals.input_ns += input_ns
        totals.infer_ns += infer_ns
        totals.output_ns += output_ns
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.compute_seconds.observe(infer_ns / 1e9)
        self.batch_items.observe(items)

    @property
    def execution_count(self) -> int:
        return sum(totals.count for totals in self.batches.values())


@dataclass(slots=True)
class ArmStats:
    """What happened to the requests that a route assigned to one of its arms."""

    # By gRPC status name in lower case; "ok": answered.
    requests: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    request_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS))

    def ended(self, status: str, total_ns: int) -> None:
        self.requests[status] += 1
        if status == "ok":
            self.request_seconds.observe(total_ns / 1e9)


@dataclass(slots=True)
class RouteStats:
    """What happened to one route since the server started, reloads included."""

    # By gRPC status name in lower case; "ok": answered.
    requests: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    items: int = 0
    success_ns: int = 0
    failure_ns: int = 0
    seen: SeenStats = field(default_factory=SeenStats)
    last_inference_ms: int = 0
    request_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS))
    arms: dict[str, ArmStats] = field(default_factory=dict)

    def arm(self, name: str) -> ArmStats:
        """The counters of an arm that the route has; of those that came last, however often it was changed."""
        counters = self.arms.get(name)
        if counters is None:
            counters = self.arms[name] = ArmStats()
            for old in list(self.arms)[:-MAX_ARMS_PER_ROUTE]:
                del self.arms[old]
        return counters

    def ended(self, status: str, items: int, total_ns: int) -> None:
        """One request was answered (ok) or was not."""
        self.requests[status] += 1
        if status != "ok":
            self.failure_ns += total_ns
            return
        self.items += items
        self.success_ns += total_ns
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.request_seconds.observe(total_ns / 1e9)


@dataclass(slots=True)
class Stats:
    """The counters of one server."""

    models: dict[tuple[str, str], ModelStats] = field(default_factory=dict)
    routes: dict[str, RouteStats] = field(default_factory=dict)
    # By (route, kind: audit | shadow); each has an outcome in the end.
    follow_ups_offered: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    # By (route, kind: audit | shadow, outcome: done, or why it was dropped).
    follow_ups: defaultdict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    # By (level before, level after).
    load_level_changes: defaultdict[tuple[Level, Level], int] = field(default_factory=lambda: defaultdict(int))
    # By (device, reason).
    worker_restarts: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    # Requests that were sent to another worker after theirs died, by model.
    resends: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # Times that candidates for an engine were compared, and that one of them was built, by model.
    engine_tunings: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    engine_builds: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # Times that a choice of an engine was looked for among those remembered, by outcome: hit | miss.
    engine_lookups: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # By (model, outcome: ok | error).
    loads: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def model(self, name: str, version: str) -> ModelStats:
        """The counters of one version that was loaded at some time; never ask with a name that a client made up.

        A model keeps the counters of the versions that were asked for last, so that a repository which gets a new
        version every hour does not grow the output for ever.
        """
        counters = self.models.get((name, version))
        if counters is None:
            counters = self.models[name, version] = ModelStats()
            self._forget_old_versions(name)
        return counters

    def route(self, name: str) -> RouteStats:
        """The counters of a route of the repository; never ask with a name that a client made up."""
        counters = self.routes.get(name)
        if counters is None:
            counters = self.routes[name] = RouteStats()
        return counters

    def _forget_old_versions(self, name: str) -> None:
        versions = [key for key in self.models if key[0] == name]
        for key in versions[:-MAX_VERSIONS_PER_MODEL]:
            del self.models[key]
