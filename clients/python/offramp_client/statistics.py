"""How often a model was called and where its time went: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from open_inference import grpc_predict_v2_pb2 as pb


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int
    #: Nanoseconds.
    ns: int

    @property
    def mean(self) -> float:
        """Seconds; 0.0 if it never happened."""
        return self.ns / self.count / 1e9 if self.count else 0.0

    @classmethod
    def from_message(cls, message: pb.StatisticDuration) -> Duration:
        return cls(message.count, message.ns)


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Executions of one batch size (items)."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration

    @classmethod
    def from_message(cls, message: pb.InferBatchStatistics) -> BatchStatistics:
        parts = (message.compute_input, message.compute_infer, message.compute_output)
        return cls(message.batch_size, *map(Duration.from_message, parts))


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Bytes that a model takes in one kind of memory."""

    type: str
    id: int
    byte_size: int

    @classmethod
    def from_message(cls, message: pb.MemoryUsage) -> MemoryUsage:
        return cls(message.type, message.id, message.byte_size)


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Of one version of a model, since it was loaded."""

    name: str
    version: str
    #: Milliseconds since the epoch; 0: never.
    last_inference: int
    #: Items.
    inference_count: int
    #: Batches.
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batches: tuple[BatchStatistics, ...]
    memory: tuple[MemoryUsage, ...]

    @classmethod
    def from_message(cls, message: pb.ModelStatistics) -> ModelStatistics:
        times = message.inference_stats
        return cls(
            name=message.name,
            version=message.version,
            last_inference=message.last_inference,
            inference_count=message.inference_count,
            execution_count=message.execution_count,
            success=Duration.from_message(times.success),
            fail=Duration.from_message(times.fail),
            queue=Duration.from_message(times.queue),
            compute_input=Duration.from_message(times.compute_input),
            compute_infer=Duration.from_message(times.compute_infer),
            compute_output=Duration.from_message(times.compute_output),
            cache_hit=Duration.from_message(times.cache_hit),
            cache_miss=Duration.from_message(times.cache_miss),
            batches=tuple(map(BatchStatistics.from_message, message.batch_stats)),
            memory=tuple(map(MemoryUsage.from_message, message.memory_usage)),
        )
