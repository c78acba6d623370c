"""The figures of a run: one sample for each server, workload, concurrency and round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One measurement. Times of a call are seen by the client; `cpu_us` is the server's, user + system, per call."""

    server: str
    workload: str
    concurrency: int
    round: int
    rate: float  # answers (bare compute: items) per second
    p50_ms: float
    p99_ms: float
    cpu_us: float
    client_cpu_us: float
    other_cores: float  # cores kept busy by anything but this server and the client
    calls: int


@dataclass(frozen=True)
class Summary:
    """Median over the rounds, and the distance of the extremes as a share of it."""

    median: float
    spread: float


def summarise(values: Sequence[float]) -> Summary:
    median = statistics.median(values)
    return Summary(median, (max(values) - min(values)) / median if median else 0.0)


class Samples:
    """All samples of a run, looked up by cell."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)

    def cell(self, server: str, workload: str, concurrency: int) -> list[Sample]:
        wanted = (server, workload, concurrency)
        return [s for s in self._samples if (s.server, s.workload, s.concurrency) == wanted]

    def servers(self, workload: str) -> list[str]:
        """Return the servers with samples for `workload`, in the order of the run."""
        return list(dict.fromkeys(s.server for s in self._samples if s.workload == workload))

    def summary(
        self, server: str, workload: str, concurrency: int, figure: Callable[[Sample], float]
    ) -> Summary | None:
        values = [figure(sample) for sample in self.cell(server, workload, concurrency)]
        return summarise(values) if values else None

    def paired(
        self,
        server: str,
        control: str,
        workload: str,
        concurrency: int,
        compare: Callable[[Sample, Sample], float],
    ) -> Summary | None:
        """Summarise `compare(server's sample, control's sample)` over rounds: pairs lie seconds apart in time."""
        controls = {sample.round: sample for sample in self.cell(control, workload, concurrency)}
        pairs = [
            (sample, controls[sample.round])
            for sample in self.cell(server, workload, concurrency)
            if sample.round in controls
        ]
        return summarise([compare(ours, theirs) for ours, theirs in pairs]) if pairs else None
