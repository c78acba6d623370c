"""The core counters under Triton's names, so that dashboards and alerts made for Triton go on working.

Triton's counters lack the suffix `_total`. OpenMetrics does not allow such a counter and promtool complains about
one, so these are declared untyped, which `rate()` does not mind. Names that end in `_us` are against Prometheus' rules
whatever their type; they are Triton's all the same, and `offramp_*` has the same values in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric, UnknownMetricFamily

from offramp_server.telemetry.gauges import ModelGauges
from offramp_server.telemetry.stats import ModelStats

LABELS = ("model", "version")

# Triton has four reasons; these are the gRPC statuses that mean the same. The others are OTHER.
REASONS = {
    "resource_exhausted": "REJECTED",
    "deadline_exceeded": "REJECTED",
    "unavailable": "REJECTED",
    "cancelled": "CANCELED",
    "internal": "BACKEND",
    "unknown": "BACKEND",
    "aborted": "BACKEND",
}

COUNTERS: tuple[tuple[str, str, Callable[[ModelStats], int]], ...] = (
    ("nv_inference_request_success", "Requests that were answered.", lambda m: m.success_count),
    ("nv_inference_count", "Rows that were answered.", lambda m: m.item_count),
    ("nv_inference_exec_count", "Batches that were computed.", lambda m: m.execution_count),
    ("nv_inference_request_duration_us", "Microseconds from arrival to answer.", lambda m: m.success_ns // 1000),
    ("nv_inference_queue_duration_us", "Microseconds in the queue.", lambda m: m.queue_ns // 1000),
    ("nv_inference_compute_input_duration_us", "Microseconds of moving inputs.", lambda m: m.input_ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Microseconds of computing.", lambda m: m.infer_ns // 1000),
    ("nv_inference_compute_output_duration_us", "Microseconds of moving outputs.", lambda m: m.output_ns // 1000),
)


def triton_families(counters: Mapping[tuple[str, str], ModelStats], models: Iterable[ModelGauges]) -> Iterator[Metric]:
    """The families by (model, version); durations are sums over requests that were answered."""
    for name, text, read in COUNTERS:
        family = UnknownMetricFamily(name, text, labels=LABELS)
        for key, model in counters.items():
            family.add_metric(key, read(model))
        yield family
    yield _failures(counters)
    yield _pending(models)


def _failures(counters: Mapping[tuple[str, str], ModelStats]) -> Metric:
    family = UnknownMetricFamily(
        "nv_inference_request_failure", "Requests that were not answered.", labels=(*LABELS, "reason")
    )
    for key, model in counters.items():
        # As in Triton, every reason is there from the start.
        by_reason = Counter({"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0})
        for status, count in model.failures.items():
            by_reason[REASONS.get(status, "OTHER")] += count
        for reason, count in by_reason.items():
            family.add_metric((*key, reason), count)
    return family


def _pending(models: Iterable[ModelGauges]) -> Metric:
    family = UnknownMetricFamily("nv_inference_pending_request_count", "Requests that wait for a batch.", labels=LABELS)
    for model in models:
        family.add_metric((model.model, model.version), model.queue_requests)
    return family
