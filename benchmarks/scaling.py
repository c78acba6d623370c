"""How Offramp scales: `python -m benchmarks.scaling [--only batch,size,models,messages,connections] [--peers triton]`.

Items in a request (1 to 64), parameters of the model (0.1 to 100 million), models loaded (1, 10, 100; traffic to one of
them and to all in turn), bytes of a tensor (4 KiB to 16 MiB), connections (1 to 1,000): beside a plain grpc.aio echo,
bare compute, and Triton if it is asked for.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.experiment import say
from benchmarks.harness.load import LoadError, choose_load_generator
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.scaling import Dimension, Growth, Point, Scaling, Setup
from benchmarks.harness.scaling_report import draw, heading, section, servers
from benchmarks.harness.tables import as_json
from benchmarks.harness.workloads import ONNX_RUNTIME, SUFFIXES, Workload, load_workload
from benchmarks.serve import client_description, words
from benchmarks.servers.base import Server
from benchmarks.servers.catalogue import PEERS, UNDELAYED, peers
from benchmarks.servers.echo import GrpcAioEcho
from benchmarks.servers.offramp import Offramp

RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
ITEMS = (1, 2, 4, 8, 16, 32, 64)
PARAMETERS: Mapping[str, float] = {"mlp-100K": 1e5, "mlp-1M": 1e6, "mlp-10M": 1e7, "mlp-100M": 1e8}
MODEL_COUNTS = (1, 10, 100)
TENSOR_BYTES = (4 * 2**10, 64 * 2**10, 2**20, 4 * 2**20, 16 * 2**20)
CONNECTIONS = (1, 10, 100, 1000)
# Of the client and the server each, besides one for each connection.
SPARE_FILES = 200
CONCURRENCY = 8
# Of all connections one call each may have to wait; by default half of them would be refused.
QUEUE_ITEMS = 2 * max(CONNECTIONS)
OFFRAMP_SCALING = f"continuous batching, no delay timer, one instance of one thread, max_queue_items {QUEUE_ITEMS}"


@dataclass(frozen=True)
class Cast:
    """Who takes part, and with which engine."""

    engine: str
    peers: Sequence[str]

    def with_echo(self) -> list[Server]:
        return [self.offramp("process"), GrpcAioEcho(everything=True), *self.others()]

    def without_echo(self) -> list[Server]:
        return [self.offramp("process"), *self.others()]

    def both_modes(self) -> list[Server]:
        return [self.offramp("process"), self.offramp("in-process"), *self.others()]

    def offramp(self, mode: str) -> Server:
        return Offramp(self.engine, mode, OFFRAMP_SCALING, max_queue_items=QUEUE_ITEMS)

    def others(self) -> list[Server]:
        return peers(self.peers, UNDELAYED, self.engine)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    allow_connections()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = cache_directory("runs", stamp)
    cast = Cast(options.engine, options.peers)
    try:
        generator = choose_load_generator(options.client)
        dimensions = [DIMENSIONS[name](cast, directory) for name in options.only]
        cast.others()
    except (LoadError, ValueError) as error:
        say(f"benchmarks.scaling: {error}")
        return 2
    machine = describe_machine()
    scaling = Scaling(generator, options.rounds, options.seconds, directory)
    growths = [scaling.run(dimension) for dimension in dimensions]
    command = shlex.join(["python", "-m", "benchmarks.scaling", *given])
    head = heading(command, client_description(generator), machine, options.rounds, options.seconds, growths)
    write(head, list(zip(dimensions, growths, strict=True)), options.output, options.name or f"scaling-{stamp}")
    return 1 if any(server.startswith("Offramp") for growth in growths for server in growth.not_run) else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--only", type=dimension_names, default=list(DIMENSIONS), help="comma-separated; all of them")
    result.add_argument("--peers", type=words, default=[], help=f"comma-separated: {','.join(PEERS[UNDELAYED])}")
    result.add_argument("--engine", choices=list(SUFFIXES), default=ONNX_RUNTIME, help="default %(default)s")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--seconds", type=float, default=1.0, help="length of one measurement, about")
    result.add_argument("--client", choices=["auto", "h2load", "grpc"], default="auto")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the report (default %(default)s)")
    result.add_argument("--name", help="of the report's files, instead of one with the time")
    return result


def dimension_names(text: str) -> list[str]:
    names = words(text)
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown dimension {unknown[0]!r}: expected some of {', '.join(DIMENSIONS)}")
    return names


def allow_connections() -> None:
    """Let this process and what it starts open as many files as the system lets them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# What grows


def batch(cast: Cast, directory: Path) -> Dimension:
    model = load_workload("student-64", cast.engine)
    points = [Point(items, replace(model, items=items, max_batch=max(ITEMS)), 1) for items in ITEMS]
    return Dimension(
        "batch", "Items in one request (student, c=1)", "items in a request", [Setup([points[-1].workload], points)],
        cast.with_echo, with_bare_compute=True, rate_title="items per s", rate_factor=lambda items: items,
    )  # fmt: skip


def size(cast: Cast, directory: Path) -> Dimension:
    models = [(count, load_workload(name, cast.engine)) for name, count in PARAMETERS.items()]
    return Dimension(
        "size", f"Parameters of the model (perceptrons, c={CONCURRENCY})", "parameters",
        [Setup([model], [Point(count, model, CONCURRENCY)]) for count, model in models],
        cast.without_echo, with_bare_compute=True, starts_matter=True,
    )  # fmt: skip


def models(cast: Cast, directory: Path) -> Dimension:
    original = load_workload("mlp-100K", cast.engine)
    folder = directory / "copies"
    folder.mkdir()
    copies = [copy(original, folder / f"copy-{number:03}") for number in range(max(MODEL_COUNTS))]
    return Dimension(
        "models", f"Models loaded (perceptrons of 0.1 M parameters, c={CONCURRENCY}, grpc.aio client)", "models loaded",
        [Setup(copies[:count], traffic(copies[:count])) for count in MODEL_COUNTS],
        cast.both_modes, with_bare_compute=False, starts_matter=True,
    )  # fmt: skip


def traffic(loaded: Sequence[Workload]) -> list[Point]:
    """To the first of the models, and to all of them, by the same client."""
    [first, *_] = loaded
    to_one = Point(len(loaded), first, CONCURRENCY, "to one", [first])
    return [to_one, Point(len(loaded), first, CONCURRENCY, "to all", loaded)] if len(loaded) > 1 else [to_one]


def copy(workload: Workload, stem: Path) -> Workload:
    """The same model under another name."""
    for suffix in {workload.program.suffix, workload.exported.suffix}:
        os.link(workload.program.with_suffix(suffix), stem.with_name(stem.name + suffix))
    return replace(workload, name=stem.name, program=stem.with_name(stem.name + workload.program.suffix))


def messages(cast: Cast, directory: Path) -> Dimension:
    model = load_workload("any-width", cast.engine)
    points = [Point(count, wide(model, count), 1) for count in TENSOR_BYTES]
    return Dimension(
        "messages", "Size of the tensor, sent and returned (identity, c=1)", "bytes of the tensor",
        [Setup([points[0].workload], points)], cast.with_echo, with_bare_compute=False,
        rate_title="MiB per s, each way", rate_factor=lambda count: count / 2**20,
    )  # fmt: skip


def wide(model: Workload, count: int) -> Workload:
    items = np.random.default_rng(0).standard_normal((1, count // 4), dtype=np.float32)
    return replace(model, inputs=items, outputs=items, dims=(-1,))


def connections(cast: Cast, directory: Path) -> Dimension:
    model = load_workload("identity", cast.engine)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = [count for count in CONNECTIONS if count + SPARE_FILES <= files]
    if len(possible) < len(CONNECTIONS):
        say(f"a process may open {files} files, so at most {max(possible)} connections are measured (ulimit -n)")
    points = [Point(count, model, count) for count in possible]
    return Dimension(
        "connections", "Connections, each with one call in flight (identity)", "connections", [Setup([model], points)],
        cast.with_echo, with_bare_compute=False,
    )  # fmt: skip


DIMENSIONS: Mapping[str, Callable[[Cast, Path], Dimension]] = {
    "batch": batch,
    "size": size,
    "models": models,
    "messages": messages,
    "connections": connections,
}


# Writing


def write(head: str, found: Sequence[tuple[Dimension, Growth]], directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    parts = [head]
    for dimension, growth in found:
        picture = f"{name}-{dimension.name}.png"
        if growth.measured:
            draw(dimension, growth, directory / picture)
        parts.append(section(dimension, growth, picture))
    parts.append(servers([growth for _, growth in found]))
    text = "\n".join(parts)
    (directory / f"{name}.md").write_text(text)
    (directory / f"{name}.json").write_text(as_json([asdict(growth) for _, growth in found]))
    print(text)
    say(f"written to {directory / name}.md, .json and .png")


if __name__ == "__main__":
    sys.exit(main())
