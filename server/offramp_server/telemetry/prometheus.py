"""Turns the counters and gauges of a server into Prometheus' text and OpenMetrics formats when it is scraped.

Every label takes its values from the repository, from the devices of this machine or from a list in the code; nothing
that a client writes becomes a label.
"""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version as distribution_version
from itertools import chain
from types import MappingProxyType

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from offramp_server.errors import InvalidRequest
from offramp_server.machine.nvml import GpuReading
from offramp_server.telemetry.audit_metrics import follow_up_families, seen_families, store_families
from offramp_server.telemetry.engine_metrics import engine_families
from offramp_server.telemetry.front_end_metrics import front_end_families
from offramp_server.telemetry.gauges import Gauges, ModelGauges, WorkerGauges
from offramp_server.telemetry.gpu_metrics import gpu_families, triton_gpu_families
from offramp_server.telemetry.process import resident_bytes
from offramp_server.telemetry.route_metrics import arm_families, load_families, setting_families
from offramp_server.telemetry.stats import Histogram, ModelStats, Stats
from offramp_server.telemetry.triton_metrics import triton_families

MODEL_LABELS = ("model", "version")

GpuReader = Callable[[], Awaitable[Sequence[GpuReading]]]
# By group.
GPU_FAMILIES: Mapping[str, Callable[[Sequence[GpuReading]], Iterable[Metric]]] = MappingProxyType(
    {"offramp": gpu_families, "triton": triton_gpu_families}
)


class Exposition:
    """What /metrics answers. It knows no global registry, so that several servers may live in one process."""

    def __init__(self, stats: Stats, gauges: Gauges, gpus: GpuReader | None = None) -> None:
        """`gpus` is asked once for a scrape that wants to know of them; None: there are none."""
        self._gpus = gpus
        self._groups: Mapping[str, Collector] = {
            "offramp": OfframpCollector(stats, gauges),
            "triton": TritonCollector(stats, gauges),
            "process": ProcessCollector(registry=None),
        }

    async def render(self, accept: str = "", groups: Iterable[str] = ()) -> tuple[bytes, str]:
        """The metrics and their content type, in the format that the Accept header asks for.

        `groups` narrows the answer to some of offramp, triton and process. Raises InvalidRequest for another name.

        A family is written at a time and the event loop gets its turn after each, since all of them take tens of
        milliseconds with twenty models and requests would wait for that long.
        """
        encode, content_type = choose_encoder(accept)
        end = encode(_Families())
        parts = []
        chosen = self._chosen(set(groups))
        readings = await self._gpus() if self._gpus is not None and GPU_FAMILIES.keys() & set(chosen) else ()
        for group in chosen:
            of_gpus = GPU_FAMILIES[group](readings) if group in GPU_FAMILIES else ()
            for family in chain(self._groups[group].collect(), of_gpus):
                parts.append(encode(_Families(family)).removesuffix(end))
                await asyncio.sleep(0)
        return b"".join(parts) + end, content_type

    def _chosen(self, groups: set[str]) -> list[str]:
        unknown = groups - self._groups.keys()
        if unknown:
            raise InvalidRequest(f"unknown group of metrics: expected some of {', '.join(self._groups)}")
        return [name for name in self._groups if not groups or name in groups]


class _Families(Collector):
    """The families given, and no others."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class TritonCollector(Collector):
    """The core counters under the names that Triton's dashboards ask for."""

    def __init__(self, stats: Stats, gauges: Gauges) -> None:
        self._stats = stats
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        models = list(self._gauges.models())
        yield from triton_families(with_unused(self._stats, models), models)


class OfframpCollector(Collector):
    """Everything under `offramp_`."""

    def __init__(self, stats: Stats, gauges: Gauges) -> None:
        self._stats = stats
        self._gauges = gauges
        self._build = {"version": distribution_version("offramp"), "python_version": platform.python_version()}
        # A state that no worker is in any more must show 0: a series that vanishes raises no alert.
        self._worker_states: set[tuple[str, str]] = set()

    def collect(self) -> Iterator[Metric]:
        models = list(self._gauges.models())
        yield from self._server()
        yield from _model_counters(with_unused(self._stats, models))
        yield from _model_gauges(models)
        yield from _server_counters(self._stats, models)
        yield from engine_families(self._stats, models)
        yield from load_families(self._stats, self._gauges.load_level())
        routes = list(self._gauges.routes())
        yield from arm_families(self._stats, routes)
        yield from seen_families(self._stats, routes)
        yield from setting_families(routes)
        under_way = self._gauges.follow_ups()
        yield from follow_up_families(self._stats, under_way.count, under_way.bytes)
        yield from store_families(self._gauges.store())
        yield from self._workers(list(self._gauges.workers()))
        yield from front_end_families(self._gauges.front_ends())

    def _server(self) -> Iterator[Metric]:
        yield InfoMetricFamily("offramp_build", "The version that runs.", value=self._build)
        yield GaugeMetricFamily(
            "offramp_ready",
            "1 while the server takes requests, 0 while it starts or drains.",
            value=self._gauges.ready(),
        )
        yield GaugeMetricFamily(
            "offramp_requests_in_flight",
            "Requests that are inside the server.",
            value=self._gauges.requests_in_flight(),
        )

    def _workers(self, workers: Sequence[WorkerGauges]) -> Iterator[Metric]:
        alive = Counter((worker.device, worker.state) for worker in workers)
        self._worker_states |= alive.keys()
        family = GaugeMetricFamily("offramp_workers", "Workers by what they are doing.", labels=("device", "state"))
        for key in sorted(self._worker_states):
            family.add_metric(key, alive[key])
        yield family
        yield _worker_memory(workers)
        yield _worker_held(workers)


def with_unused(stats: Stats, models: Iterable[ModelGauges]) -> Mapping[tuple[str, str], ModelStats]:
    """The counters of every version, zeros for one that was never called: a rate needs the first increment."""
    unused = {(model.model, model.version): ModelStats() for model in models}
    return unused | stats.models


def _model_counters(models: Mapping[tuple[str, str], ModelStats]) -> Iterator[Metric]:
    yield _requests(models)
    yield _count(models, "offramp_items", "Rows that were answered.", lambda m: m.item_count)
    yield _count(models, "offramp_executions", "Batches that were computed.", lambda m: m.execution_count)
    yield _count(
        models,
        "offramp_out_of_memory_splits",
        "How often a batch was cut in two because it needed more memory than there was.",
        lambda m: m.out_of_memory_splits,
    )
    yield _histogram(
        models,
        "offramp_request_duration_seconds",
        "Time from a request's arrival to its answer, of requests that were answered.",
        lambda m: m.request_seconds,
    )
    yield _histogram(
        models,
        "offramp_preprocess_seconds",
        "Time from a request's arrival until its texts or pictures were tensors.",
        lambda m: m.preprocess_seconds,
    )
    yield _histogram(
        models,
        "offramp_queue_duration_seconds",
        "Time that a request waited for a batch, of requests that were answered.",
        lambda m: m.queue_seconds,
    )
    yield _histogram(
        models, "offramp_compute_duration_seconds", "Time that a batch was computed.", lambda m: m.compute_seconds
    )
    yield _histogram(models, "offramp_batch_size_items", "Rows in a batch that was computed.", lambda m: m.batch_items)


def _requests(models: Mapping[tuple[str, str], ModelStats]) -> Metric:
    family = CounterMetricFamily(
        "offramp_requests", "Requests that ended, by gRPC status.", labels=(*MODEL_LABELS, "status")
    )
    for key, model in models.items():
        family.add_metric((*key, "ok"), model.success_count)
        for reason, count in model.failures.items():
            family.add_metric((*key, reason), count)
    return family


def _count(
    models: Mapping[tuple[str, str], ModelStats], name: str, text: str, read: Callable[[ModelStats], int]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=MODEL_LABELS)
    for key, model in models.items():
        family.add_metric(key, read(model))
    return family


def _histogram(
    models: Mapping[tuple[str, str], ModelStats], name: str, text: str, read: Callable[[ModelStats], Histogram]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=MODEL_LABELS, unit=name.rpartition("_")[2])
    for key, model in models.items():
        histogram = read(model)
        family.add_metric(key, histogram.cumulative(), histogram.sum)
    return family


def _model_gauges(models: Sequence[ModelGauges]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("offramp_model_ready", "1 while this version can answer.", labels=MODEL_LABELS)
    queue = GaugeMetricFamily("offramp_queue_items", "Rows that wait for a batch.", labels=MODEL_LABELS)
    engine = InfoMetricFamily(
        "offramp_engine", "What executes this version.", labels=(*MODEL_LABELS, "engine", "device", "precision")
    )
    for model in models:
        key = (model.model, model.version)
        ready.add_metric(key, model.ready)
        queue.add_metric(key, model.queue_items)
        if model.engine is not None:
            engine.add_metric((*key, model.engine.backend, model.engine.device, model.engine.precision), {})
    yield from (ready, queue, engine)


def _server_counters(stats: Stats, models: Iterable[ModelGauges]) -> Iterator[Metric]:
    names = {model.model for model in models}
    outcomes = {(name, outcome): 0 for name in names for outcome in ("ok", "error")}
    never = dict.fromkeys(names, 0)
    loads = "Loads of models, by outcome."
    routes = "Requests that named a route, by gRPC status."
    restarts = "Workers that were started again, by reason."
    resends = "Requests that were sent to another worker after theirs died or failed."
    yield _by_labels("offramp_model_loads", loads, ("model", "outcome"), (outcomes | stats.loads).items())
    by_status = (
        ((name, status), count) for name, route in stats.routes.items() for status, count in route.requests.items()
    )
    yield _by_labels("offramp_route_requests", routes, ("route", "status"), by_status)
    yield _by_labels("offramp_worker_restarts", restarts, ("device", "reason"), stats.worker_restarts.items())
    by_model = (((model,), count) for model, count in (never | stats.resends).items())
    yield _by_labels("offramp_request_resends", resends, ("model",), by_model)


def _by_labels(name: str, text: str, labels: Sequence[str], counts: Iterable[tuple[Sequence[str], int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in counts:
        family.add_metric(key, count)
    return family


def _worker_held(workers: Iterable[WorkerGauges]) -> Metric:
    family = GaugeMetricFamily(
        "offramp_worker_held_bytes", "Hidden state that workers keep for later stages.", labels=("device",)
    )
    held: Counter[str] = Counter()
    for worker in workers:
        held[worker.device] += worker.held_bytes
    for device, size in held.items():
        family.add_metric((device,), size)
    return family


def _worker_memory(workers: Iterable[WorkerGauges]) -> Metric:
    """By device, not by process: process ids would make a new series with every restart."""
    family = GaugeMetricFamily(
        "offramp_worker_resident_memory_bytes",
        "Resident memory of the worker processes; pages that several share count once for each.",
        labels=("device",),
    )
    memory: Counter[str] = Counter()
    for worker in workers:
        used = None if worker.pid is None else resident_bytes(worker.pid)
        if used is not None:
            memory[worker.device] += used
    for device, used in memory.items():
        family.add_metric((device,), used)
    return family
