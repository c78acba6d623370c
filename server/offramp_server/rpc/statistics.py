"""Counters of a model as ModelStatistics."""

from __future__ import annotations

from open_inference import grpc_predict_v2_pb2 as pb

from offramp_server.telemetry.stats import BatchTotals, ModelStats, RouteStats


def statistics_message(name: str, version: str, stats: ModelStats) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=stats.last_inference_ms,
        inference_count=stats.item_count,
        execution_count=stats.execution_count,
        inference_stats=_inference(stats),
        batch_stats=[_batch(size, totals) for size, totals in sorted(stats.batches.items())],
    )


def route_statistics_message(name: str, version: str, stats: RouteStats) -> pb.ModelStatistics:
    """As for Triton's ensembles, queues and computing are those of the models that the route is composed of."""
    answered = stats.requests.get("ok", 0)
    failed = sum(stats.requests.values()) - answered
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=stats.last_inference_ms,
        inference_count=stats.items,
        execution_count=answered,
        inference_stats=pb.InferStatistics(
            success=pb.StatisticDuration(count=answered, ns=stats.success_ns),
            fail=pb.StatisticDuration(count=failed, ns=stats.failure_ns),
        ),
    )


def _inference(stats: ModelStats) -> pb.InferStatistics:
    count = stats.success_count
    return pb.InferStatistics(
        success=pb.StatisticDuration(count=count, ns=stats.success_ns),
        fail=pb.StatisticDuration(count=sum(stats.failures.values()), ns=stats.failure_ns),
        queue=pb.StatisticDuration(count=count, ns=stats.queue_ns),
        compute_input=pb.StatisticDuration(count=count, ns=stats.input_ns),
        compute_infer=pb.StatisticDuration(count=count, ns=stats.infer_ns),
        compute_output=pb.StatisticDuration(count=count, ns=stats.output_ns),
    )


def _batch(size: int, totals: BatchTotals) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=size,
        compute_input=pb.StatisticDuration(count=totals.count, ns=totals.input_ns),
        compute_infer=pb.StatisticDuration(count=totals.count, ns=totals.infer_ns),
        compute_output=pb.StatisticDuration(count=totals.count, ns=totals.output_ns),
    )
