"""What front ends of their own cost, and what they spare the server: `python -m benchmarks.front_ends`.

An identity model, with and without TLS, behind the server itself and behind several front ends, in one interleaved run;
CPU per call of each kind of process. Client and server share the machine, so rates are those of all of them together:
the CPU of the busiest process says what a larger machine could do.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.certificate import write_certificate
from benchmarks.harness.environments import REPOSITORY_ROOT, NotRunnableError
from benchmarks.harness.experiment import say
from benchmarks.harness.load import Load, LoadError, LoadGenerator, choose_load_generator
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.tables import as_json, table
from benchmarks.harness.verify import verify
from benchmarks.harness.workloads import ONNX_RUNTIME, SUFFIXES, Workload, load_workload
from benchmarks.serve import client_description, numbers
from benchmarks.servers.catalogue import OFFRAMP_EQUAL
from benchmarks.servers.offramp import NATIVE, Offramp

RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
SERVER, FRONT_END, WORKER = "server", "front ends", "worker"
# By what stands in the command line of a process; the others are the server's own.
MODULES = {"transport.relay": FRONT_END, "workers.process_main": WORKER}
WARM_UP_CALLS = 2000


@dataclass(frozen=True)
class Sample:
    """One measurement: answers per second, p50 and p99 in ms, and CPU per call in us by kind of process."""

    tls: bool
    front_ends: int
    concurrency: int
    round: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]
    # Of the front end that worked most: connections are dealt out unevenly.
    busiest_us: float


@dataclass(frozen=True)
class Contender:
    front_ends: int
    server: Offramp


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = cache_directory("runs", stamp)
    samples: list[Sample] = []
    try:
        generator = choose_load_generator("h2load")
        workload = load_workload("identity", options.engine)
        for tls in (False, True):
            samples += measure(options, tls, workload, generator, directory / ("tls" if tls else "plain"))
    except (LoadError, NotRunnableError) as error:
        say(f"benchmarks.front_ends: {error}")
        return 2
    command = shlex.join(["python", "-m", "benchmarks.front_ends", *given])
    machine = describe_machine()
    told = (
        f"{machine.cpu}, {machine.cores} cores shared by server and client; {machine.system}; Python {machine.python}."
    )
    told = f"# Front ends, {machine.date}\n\n`{command}`\n\n{told} Client: {client_description(generator)}.\n"
    write(f"{told}\n{to_markdown(samples)}", samples, options.output, options.name)
    return 0


def measure(
    options: argparse.Namespace, tls: bool, workload: Workload, generator: LoadGenerator, directory: Path
) -> list[Sample]:
    """All numbers of front ends, in turns. Raises NotRunnableError and LoadError."""
    certificate = write_certificate(directory / "certificate") if tls else None
    contenders = [
        Contender(count, Offramp(options.engine, "process", OFFRAMP_EQUAL, NATIVE, certificate, count))
        for count in options.front_ends
    ]
    try:
        for contender in contenders:
            say(f"starting {contender.server.name}{', TLS' if tls else ''}")
            contender.server.install()
            contender.server.start([workload], directory / str(contender.front_ends))
            verify(contender.server.target, workload)
        return list(_rounds(options, tls, contenders, workload, generator))
    finally:
        for contender in contenders:
            contender.server.stop()


def _rounds(
    options: argparse.Namespace,
    tls: bool,
    contenders: Sequence[Contender],
    workload: Workload,
    generator: LoadGenerator,
) -> Iterator[Sample]:
    for concurrency in options.concurrency:
        for turn in range(options.rounds):
            for contender in contenders:
                load, spent = _loaded(contender.server, workload, generator, concurrency, options.seconds)
                by_kind: dict[str, float] = {}
                for kind, taken in spent:
                    by_kind[kind] = by_kind.get(kind, 0.0) + taken
                busiest = max((taken for kind, taken in spent if kind == FRONT_END), default=0.0)
                times = load.percentile_ms(50), load.percentile_ms(99)
                yield Sample(tls, contender.front_ends, concurrency, turn, load.rate, *times, by_kind, busiest)


def _loaded(
    server: Offramp, workload: Workload, generator: LoadGenerator, concurrency: int, seconds: float
) -> tuple[Load, list[tuple[str, float]]]:
    """A measurement, and for each process what it is and its CPU per call in us."""
    pilot = generator.run(server.target, workload, concurrency, _whole(WARM_UP_CALLS, concurrency))
    before = server.cpu_seconds_by_process()
    load = generator.run(server.target, workload, concurrency, _whole(pilot.rate * seconds, concurrency))
    after = server.cpu_seconds_by_process()
    return load, [(kind_of(pid), (cpu - before.get(pid, 0.0)) / load.calls * 1e6) for pid, cpu in after.items()]


def _whole(calls: float, concurrency: int) -> int:
    return max(1, round(calls / concurrency)) * concurrency


def kind_of(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return SERVER
    return next((kind for module, kind in MODULES.items() if module in command), SERVER)


def to_markdown(samples: Iterable[Sample]) -> str:
    """Medians over the rounds."""
    cells: dict[tuple[bool, int, int], list[Sample]] = {}
    for sample in samples:
        cells.setdefault((sample.tls, sample.concurrency, sample.front_ends), []).append(sample)
    columns = ["TLS", "c", "front ends", "answers/s", "p50 ms", "p99 ms"]
    columns += ["server us", "front ends us", "busiest us", "worker us", "all us"]
    rows = [
        [
            "yes" if tls else "no",
            str(concurrency),
            str(front_ends),
            f"{median(each.rate for each in found):,.0f}",
            f"{median(each.p50_ms for each in found):.2f}",
            f"{median(each.p99_ms for each in found):.2f}",
            f"{median(each.cpu_us[SERVER] for each in found):.0f}",
            f"{median(each.cpu_us.get(FRONT_END, 0.0) for each in found):.0f}",
            f"{median(each.busiest_us for each in found):.0f}",
            f"{median(each.cpu_us.get(WORKER, 0.0) for each in found):.0f}",
            f"{median(sum(each.cpu_us.values()) for each in found):.0f}",
        ]
        for (tls, concurrency, front_ends), found in sorted(cells.items())
    ]
    note = (
        "CPU is user and system time per call, of all processes of a kind; *busiest* is the front end that spent most. "
        "Medians over the rounds.\n"
    )
    return f"{table(columns, rows)}\n{note}"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.front_ends",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--front-ends", type=numbers, default=[1, 2], help="1: the server itself (default 1,2)")
    result.add_argument("--concurrency", type=numbers, default=[1, 8, 32], help="calls in flight (default 1,8,32)")
    result.add_argument("--engine", choices=list(SUFFIXES), default=ONNX_RUNTIME, help="default %(default)s")
    result.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    result.add_argument("--seconds", type=float, default=1.5, help="length of one measurement, about")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the report (default %(default)s)")
    result.add_argument("--name", default="front-ends", help="of the report's files (default %(default)s)")
    return result


def write(report: str, samples: Sequence[Sample], directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(report)
    (directory / f"{name}.json").write_text(as_json([asdict(sample) for sample in samples]))
    print(report)
    say(f"written to {directory / name}.md and .json")


if __name__ == "__main__":
    sys.exit(main())
