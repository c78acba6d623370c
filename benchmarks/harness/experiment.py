"""The interleaved run: for every workload and concurrency, rounds in which each server has its turn (A B C A B C).

The machine's speed drifts by more than servers differ; what is measured seconds apart can be compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.harness.cpu import machine_busy_seconds
from benchmarks.harness.environments import NotRunnableError
from benchmarks.harness.load import LoadError, LoadGenerator
from benchmarks.harness.open_loop import OpenPlan, OpenSample, measure_open, offered_rates
from benchmarks.harness.samples import Sample, Samples
from benchmarks.harness.verify import WrongAnswerError, verify
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Server
from benchmarks.servers.compute import BareCompute

FAILURES = (NotRunnableError, LoadError, WrongAnswerError)
WARM_UP_SHARE = 0.2
PILOT_CALLS_PER_CONNECTION = 4


@dataclass(frozen=True)
class Plan:
    """What a run measures. `seconds` is about how long each measurement lasts."""

    workloads: Sequence[Workload]
    concurrency: Sequence[int]
    rounds: int
    seconds: float
    # What comes after the closed loop, if anything.
    open: OpenPlan | None = None


@dataclass
class Outcome:
    """Samples of everything that ran, and the reason for each server that did not (or that fell out)."""

    samples: list[Sample] = field(default_factory=list)
    open_samples: list[OpenSample] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Contender(Protocol):
    """Something that has its turn in each round."""

    name: str

    def takes_part(self, workload: Workload) -> bool: ...

    def measure(self, workload: Workload, concurrency: int, seconds: float, turn: int) -> Sample: ...


class ServerContender:
    """A running server under closed-loop load."""

    def __init__(self, server: Server, generator: LoadGenerator) -> None:
        self.name = server.name
        self._server = server
        self._generator = generator
        self._rates: dict[tuple[str, int], float] = {}

    def takes_part(self, workload: Workload) -> bool:
        return self._server.serves(workload)

    def measure(self, workload: Workload, concurrency: int, seconds: float, turn: int) -> Sample:
        self._warm_up(workload, concurrency, seconds * WARM_UP_SHARE)
        calls = self._calls(workload, concurrency, seconds)
        busy, cpu, started = machine_busy_seconds(), self._server.cpu_seconds(), time.monotonic()
        load = self._generator.run(self._server.target, workload, concurrency, calls)
        cpu_s = self._server.cpu_seconds() - cpu
        others = machine_busy_seconds() - busy - cpu_s - load.client_cpu_s
        self._rates[workload.name, concurrency] = load.rate
        return Sample(
            server=self.name,
            workload=workload.name,
            concurrency=concurrency,
            round=turn,
            rate=load.rate,
            p50_ms=load.percentile_ms(50),
            p99_ms=load.percentile_ms(99),
            cpu_us=cpu_s / load.calls * 1e6,
            client_cpu_us=load.client_cpu_s / load.calls * 1e6,
            other_cores=max(0.0, others) / (time.monotonic() - started),
            calls=load.calls,
        )

    def _warm_up(self, workload: Workload, concurrency: int, seconds: float) -> None:
        if (workload.name, concurrency) not in self._rates:
            pilot = concurrency * PILOT_CALLS_PER_CONNECTION
            load = self._generator.run(self._server.target, workload, concurrency, pilot)
            self._rates[workload.name, concurrency] = load.rate
        self._generator.run(self._server.target, workload, concurrency, self._calls(workload, concurrency, seconds))

    def _calls(self, workload: Workload, concurrency: int, seconds: float) -> int:
        """Return how many calls take about `seconds`, a multiple of the concurrency."""
        rate = self._rates[workload.name, concurrency]
        return max(1, round(rate * seconds / concurrency)) * concurrency


class ComputeContender:
    """Bare compute, in batches as large as a server could form from the calls in flight."""

    def __init__(self, compute: BareCompute) -> None:
        self.name = compute.name
        self._compute = compute

    def takes_part(self, workload: Workload) -> bool:
        return True

    def measure(self, workload: Workload, concurrency: int, seconds: float, turn: int) -> Sample:
        batch = min(concurrency * workload.items, workload.max_batch)
        busy, started = machine_busy_seconds(), time.monotonic()
        timing = self._compute.time_calls(workload, batch, seconds)
        others = machine_busy_seconds() - busy - timing.cpu_s
        taken = np.array(timing.seconds)
        answers = batch / workload.items * len(taken)
        return Sample(
            server=self.name,
            workload=workload.name,
            concurrency=concurrency,
            round=turn,
            rate=answers / float(taken.sum()),
            p50_ms=float(np.percentile(taken, 50)) * 1e3,
            p99_ms=float(np.percentile(taken, 99)) * 1e3,
            cpu_us=timing.cpu_s / answers * 1e6,
            client_cpu_us=0.0,
            other_cores=max(0.0, others) / (time.monotonic() - started),
            calls=len(taken),
        )


class Experiment:
    """Starts the servers, checks them, measures in rounds, checks them again, stops them."""

    def __init__(self, plan: Plan, generator: LoadGenerator, directory: Path) -> None:
        self._plan = plan
        self._generator = generator
        self._directory = directory
        self._outcome = Outcome()

    def run(self, servers: Sequence[Server]) -> Outcome:
        """Run everything. A server that fails anywhere is reported with its reason and the others go on."""
        compute = BareCompute()
        try:
            self._attempt(compute.name, partial(self._start_compute, compute))
            for server in servers:
                self._attempt(server.name, partial(self._start, server))
            running = [server for server in servers if server.name not in self._outcome.not_run]
            self._measure([ComputeContender(compute), *(ServerContender(s, self._generator) for s in running)])
            if self._plan.open is not None:
                self._measure_open([server for server in running if not server.is_control], self._plan.open)
            for server in running:
                self._attempt(server.name, partial(self._verify, server))
        finally:
            compute.stop()
            for server in servers:
                server.stop()
        return self._outcome

    def _attempt(self, name: str, step: Callable[[], None]) -> None:
        if name in self._outcome.not_run:
            return
        try:
            step()
        except FAILURES as failure:
            say(f"{name}: {failure}")
            self._outcome.not_run[name] = str(failure)

    def _start_compute(self, compute: BareCompute) -> None:
        compute.start(self._plan.workloads)
        self._outcome.versions[compute.name] = compute.versions()
        self._outcome.notes[compute.name] = compute.note

    def _start(self, server: Server) -> None:
        server.install()
        say(f"starting {server.name}")
        server.start(self._plan.workloads, self._directory / server.name.replace(" ", "-").replace(",", ""))
        self._outcome.versions[server.name] = server.versions()
        said = [server.note, server.engines(self._plan.workloads)]
        self._outcome.notes[server.name] = ". Chosen: ".join(filter(None, said))
        self._verify(server)

    def _verify(self, server: Server) -> None:
        for workload in self._plan.workloads:
            if server.serves(workload):
                verify(server.target, workload)

    def _measure(self, contenders: Sequence[Contender]) -> None:
        for workload in self._plan.workloads:
            for concurrency in self._plan.concurrency:
                say(f"measuring {workload.name} at c={concurrency}")
                for turn in range(self._plan.rounds):
                    self._round(contenders, workload, concurrency, turn)

    def _round(self, contenders: Sequence[Contender], workload: Workload, concurrency: int, turn: int) -> None:
        for contender in contenders:
            if contender.takes_part(workload):
                self._attempt(contender.name, partial(self._turn, contender, workload, concurrency, turn))

    def _turn(self, contender: Contender, workload: Workload, concurrency: int, turn: int) -> None:
        sample = contender.measure(workload, concurrency, self._plan.seconds, turn)
        self._outcome.samples.append(sample)

    def _measure_open(self, servers: Sequence[Server], plan: OpenPlan) -> None:
        for workload in self._plan.workloads:
            capacities = self._capacities(servers, workload)
            for rate in offered_rates(capacities, plan) if capacities else ():
                say(f"measuring {workload.name}, offered {rate:g}/s")
                for turn in range(plan.rounds):
                    for server in servers:
                        self._attempt(server.name, partial(self._open_turn, server, workload, rate, turn, plan))

    def _capacities(self, servers: Sequence[Server], workload: Workload) -> list[float]:
        """What each answered per second at the most concurrency, as far as it still takes part."""
        samples, most = Samples(self._outcome.samples), max(self._plan.concurrency)
        running = [server.name for server in servers if server.name not in self._outcome.not_run]
        found = [samples.summary(name, workload.name, most, lambda sample: sample.rate) for name in running]
        return [summary.median for summary in found if summary is not None]

    def _open_turn(self, server: Server, workload: Workload, rate: float, turn: int, plan: OpenPlan) -> None:
        self._outcome.open_samples.append(measure_open(server, workload, rate, turn, plan))


def say(message: str) -> None:
    """Tell the person at the terminal; standard output is for the tables."""
    print(message, file=sys.stderr, flush=True)
