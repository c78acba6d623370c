"""The server's transports beside each other, a grpc.aio echo and a C++ one: `python -m benchmarks.transports`.

An identity model through the whole server: plain calls; metadata that no two calls share, as C-core and as Go or Java
compress it; TLS; requests and answers of 600 KB; 1,000 connections. benchmarks/README.md says how it is measured.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.certificate import Certificate, write_certificate
from benchmarks.harness.environments import REPOSITORY_ROOT, NotRunnableError
from benchmarks.harness.experiment import say
from benchmarks.harness.load import BareClient, H2Load, LoadError, LoadGenerator, choose_load_generator
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.scaling import Dimension, Growth, Point, Scaling, Setup
from benchmarks.harness.tables import as_json
from benchmarks.harness.transports_report import Scenario, to_markdown
from benchmarks.harness.workloads import ONNX_RUNTIME, SUFFIXES, Workload, load_workload
from benchmarks.runtimes.header_fields import INDEXED, SAME, UNINDEXED
from benchmarks.scaling import QUEUE_ITEMS, allow_connections, wide
from benchmarks.serve import client_description, words
from benchmarks.servers.base import Server
from benchmarks.servers.catalogue import OFFRAMP_EQUAL
from benchmarks.servers.echo import CppEcho, GrpcAioEcho
from benchmarks.servers.offramp import GRPCIO, NATIVE, Offramp

RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
LARGE_BYTES = 600_000
MODES = ("in-process", "process")


@dataclass(frozen=True)
class Kind:
    """A scenario, and what sends its requests: h2load unless each call has metadata of its own."""

    scenario: Scenario
    metadata: str | None = None
    tls: bool = False
    large: bool = False

    def points(self, small: Workload, large: Workload) -> list[Point]:
        workload = replace(large if self.large else small, name=self.scenario.name)
        client: LoadGenerator | None = None if self.metadata is None else BareClient(self.metadata)
        return [Point(c, workload, c, self.scenario.name, client=client) for c in self.scenario.concurrency]


KINDS: Mapping[str, Kind] = {
    kind.scenario.name: kind
    for kind in (
        Kind(Scenario("plain", "Plain calls, FP32 [1,64]", (1, 8, 32))),
        Kind(Scenario("same", "The same, sent by the client of the next two", (1, 32)), SAME),
        Kind(Scenario("unindexed", "Unique metadata in each call, as C-core sends it", (1, 32)), UNINDEXED),
        Kind(Scenario("indexed", "Unique metadata in each call, as Go and Java send it", (1, 32)), INDEXED),
        Kind(Scenario("large", "Requests and answers of 600 KB", (1, 8)), large=True),
        Kind(Scenario("connections", "1,000 connections, a call in flight on each", (1000,))),
        Kind(Scenario("tls", "TLS", (1, 32)), tls=True),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    allow_connections()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = cache_directory("runs", stamp)
    try:
        generator = h2load()
        dimensions = list(plan(options, directory))
    except (LoadError, NotRunnableError) as error:
        say(f"benchmarks.transports: {error}")
        return 2
    machine = describe_machine()
    scaling = Scaling(generator, options.rounds, options.seconds, directory)
    growths = [scaling.run(dimension) for dimension in dimensions]
    command = shlex.join(["python", "-m", "benchmarks.transports", *given])
    scenarios = [KINDS[name].scenario for name in options.only]
    client = client_description(generator)
    report = to_markdown(command, client, machine, options.rounds, options.seconds, scenarios, growths)
    write(report, growths, options.output, options.name or f"transports-{stamp}")
    return 1 if any(server.startswith("Offramp") for growth in growths for server in growth.not_run) else 0


def h2load() -> H2Load:
    """Raises LoadError: the stand-in for it costs as much as a server, and knows no TLS."""
    generator = choose_load_generator("h2load")
    assert isinstance(generator, H2Load)
    return generator


def plan(options: argparse.Namespace, directory: Path) -> list[Dimension]:
    """Scenarios with TLS have servers of their own. Raises NotRunnableError."""
    chosen = [KINDS[name] for name in options.only]
    small = load_workload("identity", options.engine)
    large = wide(load_workload("any-width", options.engine), LARGE_BYTES)
    dimensions = []
    for tls in (False, True):
        points = [point for kind in chosen if kind.tls == tls for point in kind.points(small, large)]
        if points:
            certificate = write_certificate(directory / "certificate") if tls else None
            setup = Setup([point.workload for point in points], points)
            cast = partial(servers, options.engine, options.modes, options.transports, certificate)
            name = "tls" if tls else "no-tls"
            dimensions.append(Dimension(name, name, "calls in flight", [setup], cast, with_bare_compute=False))
    return dimensions


def servers(
    engine: str, modes: Sequence[str], transports: Sequence[str], certificate: Certificate | None
) -> list[Server]:
    note = f"{OFFRAMP_EQUAL}, max_queue_items {QUEUE_ITEMS}"
    own = [
        Offramp(engine, mode, note, transport, certificate, max_queue_items=QUEUE_ITEMS)
        for transport in transports
        for mode in modes
    ]
    return [*own, GrpcAioEcho(everything=True, tls=certificate), CppEcho(everything=True, tls=certificate)]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.transports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--only", type=scenario_names, default=list(KINDS), help=f"comma-separated: {','.join(KINDS)}")
    result.add_argument("--modes", type=words, default=list(MODES), help=f"of workers: {','.join(MODES)}")
    result.add_argument("--transports", type=words, default=[GRPCIO, NATIVE], help="default grpcio,native")
    result.add_argument("--engine", choices=list(SUFFIXES), default=ONNX_RUNTIME, help="default %(default)s")
    result.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    result.add_argument("--seconds", type=float, default=1.5, help="length of one measurement, about")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the report (default %(default)s)")
    result.add_argument("--name", help="of the report's files, instead of one with the time")
    return result


def scenario_names(text: str) -> list[str]:
    names = words(text)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown scenario {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    return names


def write(report: str, growths: Sequence[Growth], directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(report)
    samples = [measured.sample for growth in growths for measured in growth.measured]
    (directory / f"{name}.json").write_text(as_json([vars(sample) for sample in samples]))
    print(report)
    say(f"written to {directory / name}.md and .json")


if __name__ == "__main__":
    sys.exit(main())
