"""Measure routes beside the models that they run: `python -m benchmarks.routes --data FILE REFERENCE PATH [PATH ...]`.

REFERENCE and each PATH are models or routes of a repository, all called with the same labelled examples, through gRPC,
in interleaved rounds. Reported are answers per second and latencies, beside the reference's of the same round, and what
was answered: accuracy, agreement with the reference, and which exit or models answered.

    offramp make examples/fashion/demo.toml --no-evaluation --repository build/fashion-repository
    python examples/fashion/data.py --halves build/fashion-halves
    python -m benchmarks.routes --repository build/fashion-repository --data build/fashion-halves/unseen.npz \\
        fashion-teacher fashion-student fashion-cascade fashion-cascade-3 fashion-multi-exit
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tomlkit
from offramp_client.inference import InferResult, decode
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.cpu import machine_busy_seconds
from benchmarks.harness.environments import REPOSITORY_ROOT, project_environment
from benchmarks.harness.experiment import say
from benchmarks.harness.labelled import Examples, load_examples
from benchmarks.harness.load import children_cpu_seconds
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.processes import ServerProcess
from benchmarks.harness.report import NOISY, QUIET_CORES
from benchmarks.harness.tables import table, without_home
from benchmarks.runtimes.route_load import pack, unpack
from benchmarks.servers.base import announced_target, base_environment

START_TIMEOUT_S = 300.0
WARM_UP_SHARE = 0.5
RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Turn:
    """One path at one concurrency in one round."""

    path: str
    concurrency: int
    round: int
    rate: float  # answers per second
    p50_ms: float
    p99_ms: float
    server_cpu_us: float  # per call
    other_cores: float


FIGURES: Mapping[str, Callable[[Turn], float]] = {
    "answers/s": lambda turn: turn.rate,
    "p50": lambda turn: turn.p50_ms,
    "p99": lambda turn: turn.p99_ms,
    "server CPU": lambda turn: turn.server_cpu_us,
}


@dataclass(frozen=True)
class Load:
    """What the client saw: of each call which example it was, seconds, and the answer's bytes."""

    seconds: float
    requests: list[int]
    latencies_s: list[float]
    answers: list[bytes]


@dataclass
class Answered:
    """What a path answered, over all rounds: class and exit by example."""

    classes: dict[int, int] = field(default_factory=dict)
    # Calls by what answered them.
    by: Counter[str] = field(default_factory=Counter)


class Run:
    """Measures paths of one running server, with the clients of `runtimes.route_load` or `runtimes.http2_load`."""

    def __init__(
        self,
        server: ServerProcess,
        target: str,
        examples: Examples,
        output: str,
        transport: str = "",
        bare: bool = False,
    ) -> None:
        self._server = server
        self._target = target
        self._examples = examples
        self._output = output
        self._transport = transport
        self._bare = bare
        self.answered: dict[str, Answered] = {}

    def name(self, path: str) -> str:
        """What the path is called in the report."""
        return f"{path}, {self._transport}" if self._transport else path

    def turn(self, path: str, concurrency: int, number: int, seconds: float) -> Turn:
        """Raises CalledProcessError if a call fails."""
        busy, cpu, client = machine_busy_seconds(), self._server.cpu_seconds(), children_cpu_seconds()
        load = self._load(path, concurrency, seconds, number)
        cpu_s, client_s = self._server.cpu_seconds() - cpu, children_cpu_seconds() - client
        others = machine_busy_seconds() - busy - cpu_s - client_s
        self._note(path, load)
        p50, p99 = np.percentile(load.latencies_s, (50, 99)) * 1e3
        calls = len(load.latencies_s)
        rate, each = calls / load.seconds, cpu_s / calls * 1e6
        return Turn(self.name(path), concurrency, number, rate, p50, p99, each, max(0.0, others) / load.seconds)

    def _load(self, path: str, concurrency: int, seconds: float, seed: int) -> Load:
        module = "http2_load" if self._bare else "route_load"
        command = [sys.executable, "-m", f"benchmarks.runtimes.{module}", self._target, str(concurrency)]
        bare = ["--seconds", str(seconds), "--seed", str(seed), "--answers"]
        arguments = bare if self._bare else [str(seconds), str(seed)]
        requests = pack(self._examples.requests(path))
        done = subprocess.run(
            [*command, *arguments], input=requests, stdout=subprocess.PIPE, cwd=REPOSITORY_ROOT, check=True
        )
        line, _, answers = done.stdout.partition(b"\n")
        return Load(**json.loads(line), answers=list(unpack(answers)))

    def _note(self, path: str, load: Load) -> None:
        noted = self.answered.setdefault(self.name(path), Answered())
        for request, answer in zip(load.requests, load.answers, strict=True):
            result = decode(pb.ModelInferResponse.FromString(answer))
            noted.classes[request] = int(result[self._output].argmax())
            noted.by[answered_by(result)] += 1


def answered_by(result: InferResult) -> str:
    """The exit, or else the models that took part."""
    path = result.path
    return path.exit or " + ".join(model.partition(":")[0] for model in path.models) or result.model_name


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    examples = load_examples(options.data, options.input, options.part)
    paths = [options.reference, *options.paths]
    machine = describe_machine()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = cache_directory("runs", stamp)
    repository = with_engine(options.repository, directory / "models", options.engine, options.threads)
    with ExitStack() as servers:
        runs = []
        for transport in options.transports or [""]:
            server = start(repository, directory / f"server{transport}.log", options.config, transport)
            servers.callback(server.stop)
            target = announced_target(server, START_TIMEOUT_S)
            runs.append(Run(server, target, examples, options.output, transport, options.client == "bare"))
        turns = list(measure(runs, paths, options))
    names = [run.name(path) for run in runs for path in paths]
    answered = {name: answers for run in runs for name, answers in run.answered.items()}
    report = "\n".join(
        [
            heading(shlex.join(["python", "-m", "benchmarks.routes", *given]), machine, turns, options),
            *(speed_table(turns, names, concurrency) for concurrency in options.concurrency),
            transports_table(turns, runs, paths, options.concurrency),
            answers_table(answered, names, examples, names[0]),
        ]
    )
    write(report, turns, options.results, f"routes-{stamp}")
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.routes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("reference", help="what the others are compared with")
    result.add_argument("paths", nargs="+", metavar="PATH")
    result.add_argument("--repository", type=Path, required=True)
    result.add_argument(
        "--data", type=Path, required=True, help="labelled examples: .npz with images, or texts in .tsv"
    )
    result.add_argument("--part", default="test", help="of a folder (%(default)s)")
    result.add_argument("--input", default="image", help="the input that takes them (%(default)s)")
    result.add_argument("--output", default="logits", help="the output that has the classes (%(default)s)")
    result.add_argument("--engine", help="[engine] backend of every model, instead of what each says")
    result.add_argument("--threads", type=int, default=1, help="[engine] threads, with --engine (%(default)s)")
    result.add_argument("--config", type=Path, help="of the server")
    result.add_argument("--transports", type=words, default=[], help="a server for each of grpcio,native")
    result.add_argument(
        "--client", choices=["grpc", "bare"], default="grpc", help="bare: HTTP/2 at a tenth of the cost"
    )
    result.add_argument("--concurrency", type=numbers, default=[8], help="calls in flight, e.g. 1,8,32")
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--seconds", type=float, default=4.0, help="length of one measurement (%(default)s)")
    result.add_argument("--results", type=Path, default=RESULTS, help="folder for the report (%(default)s)")
    return result


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def with_engine(repository: Path, copy: Path, engine: str | None, threads: int) -> Path:
    """The repository, or a copy of it in which every model names that engine."""
    if engine is None:
        return repository
    shutil.copytree(repository, copy)
    for path in copy.glob("*/model.toml"):
        document = tomlkit.parse(path.read_text())
        document["engine"] = {"backend": engine, "threads": threads}
        path.write_text(tomlkit.dumps(document))
    return copy


def start(repository: Path, log: Path, config: Path | None, transport: str = "") -> ServerProcess:
    """An empty `transport` is what the configuration says."""
    executable = project_environment().root / "bin" / "offramp"
    command: list[str | Path] = [executable, "serve", "--model-repository", repository, "--grpc-port", "0"]
    command += ["--http-port", "0"]
    if config is not None:
        command += ["--config", config]
    chosen = {"OFFRAMP_SERVER__TRANSPORT": transport} if transport else {}
    return ServerProcess(command, {**base_environment(), **chosen}, log)


def measure(runs: Sequence[Run], paths: Sequence[str], options: argparse.Namespace) -> Iterator[Turn]:
    turns = [(path, run) for path in paths for run in runs]
    for path, run in turns:
        say(f"warming up {run.name(path)}")
        run.turn(path, max(options.concurrency), 0, options.seconds * WARM_UP_SHARE)
    for run in runs:
        run.answered.clear()
    for concurrency in options.concurrency:
        for number in range(1, options.rounds + 1):
            say(f"c={concurrency}, round {number} of {options.rounds}")
            for path, run in turns:
                yield run.turn(path, concurrency, number, options.seconds)


def heading(command: str, machine: Machine, turns: Sequence[Turn], options: argparse.Namespace) -> str:
    others = [turn.other_cores for turn in turns]
    client = "bare HTTP/2" if options.client == "bare" else "grpc.aio"
    noisy = NOISY if statistics.mean(others) > QUIET_CORES else ""
    return f"""\
# Routes beside the models that they run, {machine.date}

`{command}`

{machine.cpu}, {machine.cores} cores shared by server and client ({client}, c connections with one call in flight
each); {machine.system}; Python {machine.python}. Medians of {options.rounds} interleaved rounds of {options.seconds:g}
s; ratios are taken within a round and then summarised. Other processes used {statistics.mean(others):.2f} cores
meanwhile, {max(others):.2f} at worst.
{noisy}"""


def speed_table(turns: Sequence[Turn], paths: Sequence[str], concurrency: int) -> str:
    by_path = {path: [each for each in turns if (each.path, each.concurrency) == (path, concurrency)] for path in paths}
    reference = by_path[paths[0]]
    columns = (
        "path", "answers/s", "of reference", "p50 ms", "of reference", "p99 ms", "of reference", "server CPU us a call",
    )  # fmt: skip
    rows = [
        (
            path,
            f"{median(mine, lambda turn: turn.rate):,.0f}",
            f"{ratio(mine, reference, lambda turn: turn.rate):.2f}",
            f"{median(mine, lambda turn: turn.p50_ms):.2f}",
            f"{ratio(mine, reference, lambda turn: turn.p50_ms):.2f}",
            f"{median(mine, lambda turn: turn.p99_ms):.2f}",
            f"{ratio(mine, reference, lambda turn: turn.p99_ms):.2f}",
            f"{median(mine, lambda turn: turn.server_cpu_us):,.0f}",
        )
        for path, mine in by_path.items()
    ]
    return f"## c={concurrency}\n\n{table(columns, rows)}"


def transports_table(turns: Sequence[Turn], runs: Sequence[Run], paths: Sequence[str], levels: Sequence[int]) -> str:
    """Every path over each further transport as a share of the first one."""

    def of(name: str, concurrency: int) -> list[Turn]:
        return [each for each in turns if (each.path, each.concurrency) == (name, concurrency)]

    first, *others = runs
    rows = []
    for path in paths:
        for concurrency, run in itertools.product(levels, others):
            pair = of(run.name(path), concurrency), of(first.name(path), concurrency)
            shares = [ratio(*pair, figure) for figure in FIGURES.values()]
            rows.append((run.name(path), str(concurrency), *(f"{share:.2f}" for share in shares)))
    if not rows:
        return ""
    return f"## Divided by {first.name('the same path')}\n\n{table(('path', 'c', *FIGURES), rows)}"


def answers_table(answered: Mapping[str, Answered], paths: Sequence[str], examples: Examples, reference: str) -> str:
    rows = []
    for path in paths:
        both = [example for example in answered[path].classes if example in answered[reference].classes]
        ours = np.array([answered[path].classes[example] for example in both])
        theirs = np.array([answered[reference].classes[example] for example in both])
        calls = answered[path].by.total()
        by = ", ".join(f"{name} {count / calls:.1%}" for name, count in answered[path].by.most_common())
        accuracy, agreement = (ours == examples.labels[both]).mean(), (ours == theirs).mean()
        rows.append((path, f"{len(both):,}", f"{accuracy:.2%}", f"{agreement:.2%}", by))
    columns = ("path", "examples", "accuracy", "agreement with the reference", "answered by")
    return f"## What was answered\n\n{table(columns, rows)}"


def median(turns: Sequence[Turn], figure: Callable[[Turn], float]) -> float:
    return statistics.median(map(figure, turns))


def ratio(ours: Sequence[Turn], theirs: Sequence[Turn], figure: Callable[[Turn], float]) -> float:
    return statistics.median(figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True))


def write(report: str, turns: Sequence[Turn], directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps([asdict(turn) for turn in turns], indent=1) + "\n")
    (directory / f"{name}.md").write_text(without_home(report))
    print(report)
    say(f"written to {directory / name}.md and .json")


if __name__ == "__main__":
    sys.exit(main())
