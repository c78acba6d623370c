"""Measure the Offramp server beside controls and peers: `python -m benchmarks.serve [--peers triton,mlserver,kserve]`.

Without peers this is the quick run (`make bench`): Offramp with its engine in-process and with a worker process, a
plain grpc.aio echo, and bare compute. benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.experiment import Experiment, Plan, say
from benchmarks.harness.load import H2Load, LoadError, LoadGenerator, choose_load_generator
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.report import Run, to_json, to_markdown
from benchmarks.harness.workloads import MODELS, load_workloads
from benchmarks.servers.catalogue import PEERS, own_servers, peers

QUICK_WORKLOADS = ("identity", "student")
QUICK_ROUNDS, FULL_ROUNDS = 3, 5
RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        generator = choose_load_generator(options.client)
        own, others = own_servers(), peers(options.peers)
    except (LoadError, ValueError) as error:
        say(f"benchmarks.serve: {error}")
        return 2
    full = bool(options.peers)
    workloads = load_workloads()
    names = options.workloads or (MODELS if full else QUICK_WORKLOADS)
    rounds = options.rounds or (FULL_ROUNDS if full else QUICK_ROUNDS)
    plan = Plan([workloads[name] for name in names], options.concurrency, rounds, options.seconds)
    machine = describe_machine()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    outcome = Experiment(plan, generator, cache_directory("runs", stamp)).run([*own, *others])
    command = shlex.join(["python", "-m", "benchmarks.serve", *given])
    client = client_description(generator)
    run = Run(command, client, machine, plan.seconds, rounds, names, plan.concurrency, outcome)
    write(run, options.output, f"{'full' if full else 'quick'}-{stamp}")
    # A peer may be absent; a run without Offramp or its control has failed.
    return 1 if {server.name for server in own} & set(outcome.not_run) else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    result.add_argument("--peers", type=words, default=[], help=f"comma-separated: {','.join(PEERS)}")
    result.add_argument("--workloads", type=workload_names, help=f"comma-separated: {','.join(MODELS)}")
    result.add_argument("--concurrency", type=numbers, default=[1, 8, 32], help="calls in flight, e.g. 1,8,32")
    result.add_argument("--rounds", type=int, help=f"default {QUICK_ROUNDS}, with peers {FULL_ROUNDS}")
    result.add_argument("--seconds", type=float, default=2.0, help="length of one measurement, about")
    result.add_argument("--client", choices=["auto", "h2load", "grpc"], default="auto")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the report (default %(default)s)")
    return result


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def workload_names(text: str) -> list[str]:
    names = words(text)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown workload {unknown[0]!r}: expected some of {', '.join(MODELS)}")
    return names


def client_description(generator: LoadGenerator) -> str:
    if isinstance(generator, H2Load):
        return generator.version()
    return f"{generator.name} (as costly as a server, so rates and latencies are as much its own)"


def write(run: Run, directory: Path, name: str) -> None:
    report = to_markdown(run)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(to_json(run))
    (directory / f"{name}.md").write_text(report)
    print(report)
    say(f"written to {directory / name}.md and .json")


if __name__ == "__main__":
    sys.exit(main())
