"""Scaling: one thing grows from point to point, all servers are measured at each, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.harness.experiment import FAILURES, ComputeContender, Contender, ServerContender, say
from benchmarks.harness.load import GrpcClient, LoadGenerator
from benchmarks.harness.samples import Sample
from benchmarks.harness.verify import verify
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Server
from benchmarks.servers.compute import BareCompute


@dataclass(frozen=True)
class Point:
    """One value of what grows, and the load that servers are measured under there."""

    x: float
    workload: Workload
    concurrency: int
    # What tells this load from others of the same value.
    series: str = ""
    # The models that requests go to in turn, instead of the workload's; by a client that can do so.
    spread: Sequence[Workload] = ()
    # Who sends it, instead of the usual one.
    client: LoadGenerator | None = None

    def generator(self, usual: LoadGenerator) -> LoadGenerator:
        if self.client is not None:
            return self.client
        return GrpcClient([each.request(0) for each in self.spread]) if self.spread else usual


@dataclass(frozen=True)
class Setup:
    """Servers are started with these models and measured at these points, all of one value if it is what grows."""

    models: Sequence[Workload]
    points: Sequence[Point]


@dataclass(frozen=True)
class Dimension:
    """What grows, and what is compared while it does."""

    name: str
    title: str
    axis: str
    setups: Sequence[Setup]
    servers: Callable[[], Sequence[Server]]
    with_bare_compute: bool
    # What a sample's rate is shown as, from answers per second and the point's value.
    rate_title: str = "answers per s"
    rate_factor: Callable[[float], float] = lambda x: 1.0
    # Whether how long servers take to start and what they hold then belongs to the values.
    starts_matter: bool = False


@dataclass(frozen=True)
class Measured:
    x: float
    series: str
    sample: Sample


@dataclass(frozen=True)
class Started:
    """How a server came up with the models of a value."""

    x: float
    server: str
    ready_s: float
    memory_mib: float


@dataclass
class Growth:
    """What was found in one dimension."""

    dimension: str
    measured: list[Measured] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    # Reasons by server; it may have been measured up to there.
    not_run: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Scaling:
    """Measures one dimension after the other."""

    def __init__(self, generator: LoadGenerator, rounds: int, seconds: float, directory: Path) -> None:
        self._generator = generator
        self._rounds = rounds
        self._seconds = seconds
        self._directory = directory

    def run(self, dimension: Dimension) -> Growth:
        """A server that fails anywhere takes no further part; the reason is in the result."""
        growth = Growth(dimension.name)
        for number, setup in enumerate(dimension.setups):
            servers = [server for server in dimension.servers() if server.name not in growth.not_run]
            compute = BareCompute()
            try:
                self._run_setup(dimension, setup, servers, compute, growth, f"{dimension.name}-{number}")
            finally:
                compute.stop()
                for server in servers:
                    server.stop()
        return growth

    def _run_setup(
        self,
        dimension: Dimension,
        setup: Setup,
        servers: Sequence[Server],
        compute: BareCompute,
        growth: Growth,
        name: str,
    ) -> None:
        if dimension.with_bare_compute:
            attempt(growth, compute.name, partial(start_compute, compute, setup, growth))
        for server in servers:
            attempt(growth, server.name, partial(self._start, server, setup, growth, name))
        for point in setup.points:
            say(f"measuring {dimension.name}: {point.x:g} {point.series}")
            contenders: list[Contender] = [ComputeContender(compute)] if dimension.with_bare_compute else []
            contenders += [ServerContender(server, point.generator(self._generator)) for server in servers]
            for turn in range(self._rounds):
                for contender in contenders:
                    attempt(growth, contender.name, partial(self._turn, contender, point, turn, growth))
        for server in servers:
            attempt(growth, server.name, partial(check_answers, server, setup))

    def _start(self, server: Server, setup: Setup, growth: Growth, name: str) -> None:
        server.install()
        say(f"starting {server.name} with {len(setup.models)} model(s)")
        began = time.monotonic()
        server.start(setup.models, self._directory / name / server.name.replace(" ", "-").replace(",", ""))
        ready_s = time.monotonic() - began
        x = setup.points[0].x
        growth.started.append(Started(x, server.name, ready_s, server.memory_bytes() / 2**20))
        growth.versions[server.name], growth.notes[server.name] = server.versions(), server.note
        check_answers(server, setup)

    def _turn(self, contender: Contender, point: Point, turn: int, growth: Growth) -> None:
        if contender.takes_part(point.workload):
            sample = contender.measure(point.workload, point.concurrency, self._seconds, turn)
            growth.measured.append(Measured(point.x, point.series, sample))


def check_answers(server: Server, setup: Setup) -> None:
    """Raises WrongAnswerError. An echo has the right answer for models that return their input, and for no other."""
    for workload in {point.workload.model: point.workload for point in setup.points}.values():
        if not (server.is_control and workload.computes):
            verify(server.target, workload)


def start_compute(compute: BareCompute, setup: Setup, growth: Growth) -> None:
    compute.start(setup.models)
    growth.versions[compute.name], growth.notes[compute.name] = compute.versions(), compute.note


def attempt(growth: Growth, name: str, step: Callable[[], None]) -> None:
    if name in growth.not_run:
        return
    try:
        step()
    except FAILURES as failure:
        say(f"{name}: {failure}")
        growth.not_run[name] = str(failure)
