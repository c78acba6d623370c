"""Measure the Offramp server beside controls and peers: `python -m benchmarks.serve [--peers triton,mlserver,kserve]`.

Without peers this is the quick run (`make bench`): Offramp with its engine in-process and with a worker process, a
plain grpc.aio echo, and bare compute. `--engine` says what runs the models in all of them, `--settings recommended`
sets each up as its own documentation says. benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.experiment import Experiment, Plan, say
from benchmarks.harness.load import H2Load, LoadError, LoadGenerator, choose_load_generator
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.open_loop import OpenPlan
from benchmarks.harness.report import Run, to_json, to_markdown
from benchmarks.harness.workloads import (
    FASHION_STUDENT_INT8,
    FASHION_TEACHER,
    MODELS,
    SUFFIXES,
    TORCH_EAGER,
    Workload,
    load_workloads,
)
from benchmarks.servers.catalogue import EQUAL, PEERS, RECOMMENDED, own_servers, peers
from benchmarks.servers.offramp import GRPCIO, NATIVE

QUICK_WORKLOADS = ("identity", "student")
QUICK_ROUNDS, FULL_ROUNDS = 3, 5
RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        generator = choose_load_generator(options.client)
        own = own_servers(options.settings, options.engine, options.transports)
        others = peers(options.peers, options.settings, options.engine)
        workloads = chosen_workloads(options)
    except (LoadError, ValueError, FileNotFoundError) as error:
        say(f"benchmarks.serve: {error}")
        return 2
    kind = "full" if others else "quick"
    rounds = options.rounds or (FULL_ROUNDS if others else QUICK_ROUNDS)
    open_plan = OpenPlan(rounds=options.open_rounds, seconds=options.open_seconds) if options.open else None
    plan = Plan(workloads, options.concurrency, rounds, options.seconds, open_plan)
    machine = describe_machine()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    outcome = Experiment(plan, generator, cache_directory("runs", stamp)).run([*own, *others])
    command = shlex.join(["python", "-m", "benchmarks.serve", *given])
    names = [workload.name for workload in workloads]
    client = client_description(generator)
    run = Run(command, client, machine, plan.seconds, rounds, names, plan.concurrency, outcome, open_plan)
    write(run, options.output, options.name or f"{kind}-{options.engine}-{options.settings}-{stamp}")
    # A peer may be absent; a run without Offramp or its control has failed.
    return 1 if {server.name for server in own} & set(outcome.not_run) else 0


def chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    """Raises ValueError for a name that there is not, FileNotFoundError for a repository without its models."""
    usual = (*MODELS, *([FASHION_TEACHER] if options.repository else [])) if options.peers else QUICK_WORKLOADS
    known = load_workloads(options.engine, options.repository)
    if options.settings == RECOMMENDED:
        # "auto" starts from an exported program.
        known.pop(FASHION_STUDENT_INT8, None)
    names = options.workloads or usual
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown workload {unknown[0]!r}: expected some of {', '.join(known)}")
    return [known[name] for name in names]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    result.add_argument("--peers", type=words, default=[], help=f"comma-separated: {','.join(PEERS[EQUAL])}")
    result.add_argument("--engine", choices=list(SUFFIXES), default=TORCH_EAGER, help="default %(default)s")
    result.add_argument("--settings", choices=[EQUAL, RECOMMENDED], default=EQUAL, help="default %(default)s")
    result.add_argument("--transports", type=words, default=[NATIVE], help=f"of Offramp: {GRPCIO},{NATIVE}")
    result.add_argument("--repository", type=Path, help=f"has {FASHION_TEACHER}, which is measured too then")
    names = ",".join((*MODELS, FASHION_TEACHER, FASHION_STUDENT_INT8))
    result.add_argument("--workloads", type=words, help=f"comma-separated: {names} (with --engine onnxruntime)")
    result.add_argument("--concurrency", type=numbers, default=[1, 8, 32], help="calls in flight, e.g. 1,8,32")
    result.add_argument("--rounds", type=int, help=f"default {QUICK_ROUNDS}, with peers {FULL_ROUNDS}")
    result.add_argument("--seconds", type=float, default=2.0, help="length of one measurement, about")
    result.add_argument("--open", action="store_true", help="an open loop at several rates after the closed one")
    result.add_argument("--open-rounds", type=int, default=OpenPlan.rounds, help="default %(default)s")
    result.add_argument("--open-seconds", type=float, default=OpenPlan.seconds, help="default %(default)s")
    result.add_argument("--client", choices=["auto", "h2load", "grpc"], default="auto")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the report (default %(default)s)")
    result.add_argument("--name", help="of the report's files, instead of one with the time")
    return result


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def client_description(generator: LoadGenerator) -> str:
    if isinstance(generator, H2Load):
        return generator.version()
    return f"{generator.name} (as costly as a server, so rates and latencies are as much its own)"


def write(run: Run, directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    report = to_markdown(run) + "".join(f"\n![{title}]({file})\n" for title, file in draw(run, directory, name))
    (directory / f"{name}.json").write_text(to_json(run))
    (directory / f"{name}.md").write_text(report)
    print(report)
    say(f"written to {directory / name}.md and .json")


def draw(run: Run, directory: Path, name: str) -> list[tuple[str, str]]:
    """Return what there is a picture of, and its file."""
    if find_spec("matplotlib") is None:
        say("no pictures: they need matplotlib (pip install -e .[compression])")
        return []
    from benchmarks.harness.plots import draw_closed, draw_open

    drawn = []
    if run.outcome.samples:
        draw_closed(run, directory / f"{name}.png")
        drawn.append(("closed loop", f"{name}.png"))
    if run.outcome.open_samples:
        draw_open(run.outcome.open_samples, directory / f"{name}-open.png")
        drawn.append(("open loop", f"{name}-open.png"))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
