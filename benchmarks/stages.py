"""Stages whose batches are formed anew beside the naive way: `python -m benchmarks.stages`.

The same weights of the Fashion-MNIST family, by the same engine and through gRPC, in interleaved rounds: a cascade
(int8 student, then the teacher) and the segments of a network with exits, with thresholds at which a given share of the
images goes on. The naive way is a network that goes on inside the batch with what was deferred there
(runtimes/naive_stages.py); no route is involved. The segments are also measured with hidden state that travels through
the front end instead of staying in the worker.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tomlkit
from numpy.typing import NDArray

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.environments import REPOSITORY_ROOT, project_environment
from benchmarks.harness.experiment import say
from benchmarks.harness.labelled import Examples, load_examples
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.report import NOISY, QUIET_CORES
from benchmarks.harness.tables import table
from benchmarks.routes import START_TIMEOUT_S, WARM_UP_SHARE, Run, Turn, median, numbers, ratio, start, write
from benchmarks.runtimes.naive_stages import LOGITS, naive
from benchmarks.servers.base import announced_target

RECIPE = REPOSITORY_ROOT / "benchmarks" / "runtimes" / "stages.toml"
WEIGHTS = REPOSITORY_ROOT / "examples" / "fashion" / "weights"
SAMPLE = REPOSITORY_ROOT / "examples" / "fashion" / "sample" / "test.npz"
RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "cascade": ("student", "teacher"),
    "segments": ("exits-stage1", "exits-stage2", "exits-stage3", "exits-stage4"),
}
MAX_BATCH = 16
NAIVE, FORMED, TRAVELS = "naive", "stages", "stages, state travels"


@dataclass(frozen=True)
class Case:
    """A family of stages, and the threshold of each but the last."""

    name: str
    models: tuple[str, ...]
    thresholds: tuple[float, ...]
    # Of each image, by computing it alone.
    expected: NDArray[np.int64]

    @property
    def ways(self) -> tuple[str, ...]:
        return (NAIVE, FORMED, TRAVELS) if len(self.models) > 2 else (NAIVE, FORMED)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    examples = load_examples(options.data, "image")
    models = exported()
    machine = describe_machine()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = cache_directory("runs", stamp)
    cases = [
        case(name, FAMILIES[name], share, models, examples) for name in options.families for share in options.deferred
    ]
    turns, mistaken = measured(cases, models, examples, directory, options)
    command = shlex.join(["python", "-m", "benchmarks.stages", *given])
    report = "\n".join([heading(command, machine, turns, options), *(speeds(case, turns) for case in cases)])
    write(f"{report}\n{answers(mistaken, len(examples.tensors))}", turns, options.results, f"stages-{stamp}")
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    result.add_argument("--families", type=families, default=list(FAMILIES), help=f"of {','.join(FAMILIES)}")
    result.add_argument(
        "--deferred", type=shares, default=[0.1, 0.3], help="of those that come to a stage, how many go on: 0.1,0.3"
    )
    result.add_argument("--data", type=Path, default=SAMPLE, help="images, .npz (%(default)s)")
    result.add_argument("--concurrency", type=numbers, default=[32], help="calls in flight, e.g. 8,32")
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--seconds", type=float, default=4.0, help="length of one measurement (%(default)s)")
    result.add_argument("--threads", type=int, default=1, help="of each worker (%(default)s)")
    result.add_argument("--instances", type=int, default=1, help="workers (%(default)s)")
    result.add_argument("--results", type=Path, default=RESULTS, help="folder for the report (%(default)s)")
    return result


def families(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown family {unknown[0]!r}: expected some of {', '.join(FAMILIES)}")
    return names


def shares(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


# What is compared


def exported() -> Path:
    """The repository of the stages, made first if the cache has none of these weights."""
    said = b"".join(path.read_bytes() for path in [RECIPE, *sorted(WEIGHTS.glob("*.safetensors"))])
    directory = cache_directory("stages", hashlib.sha256(said).hexdigest()[:12])
    repository = directory / "models"
    if not (directory / "complete").exists():
        say("exporting the models")
        shutil.rmtree(repository, ignore_errors=True)
        executable = project_environment().root / "bin" / "offramp"
        command: list[str | Path] = [executable, "make", RECIPE, "--no-evaluation", "--repository", repository]
        subprocess.run(command, cwd=REPOSITORY_ROOT, check=True, stdout=subprocess.DEVNULL)
        (directory / "complete").touch()
    return repository


def case(family: str, models: tuple[str, ...], share: float, repository: Path, examples: Examples) -> Case:
    """Thresholds at which `share` of what comes to a stage goes on, and the classes that are then answered."""
    images = np.concatenate([tensor.numpy() for tensor in examples.tensors])
    given: dict[str, NDArray[np.float32]] = {"image": images}
    items, thresholds = np.arange(len(images)), list[float]()
    expected = np.zeros(len(images), np.int64)
    for model in models:
        session = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx")
        takes = [value.name for value in session.get_inputs()]
        outputs = dict(
            zip(
                [value.name for value in session.get_outputs()],
                session.run(None, {name: given[name] for name in takes}),
                strict=True,
            )
        )
        expected[items] = outputs[LOGITS].argmax(1)
        if model == models[-1]:
            break
        scores = largest_probability(outputs[LOGITS])
        thresholds.append(threshold_between(scores, share))
        stay = np.flatnonzero(scores < thresholds[-1])
        items = items[stay]
        given = {"image": given["image"][stay], **{name: rows[stay] for name, rows in outputs.items()}}
    return Case(f"{family}-{round(100 * share)}", models, tuple(thresholds), expected)


def largest_probability(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray((powers / powers.sum(1, keepdims=True)).max(1))


def threshold_between(scores: NDArray[np.float64], share: float) -> float:
    """Halfway between two scores, so that no rounding decides who goes on."""
    ordered = np.sort(scores)
    below = min(max(1, round(share * len(ordered))), len(ordered) - 1)
    return float(ordered[below - 1 : below + 1].mean())


def repositories(cases: Sequence[Case], models: Path, directory: Path, threads: int, instances: int) -> dict[str, Path]:
    """For each way, its folder: the cases are routes over the stages, or networks."""
    formed, network = directory / "formed", directory / "naive"
    used = {model for case in cases for model in case.models}
    for model in used:
        shutil.copytree(models / model, formed / model)
    for case in cases:
        (formed / case.name).mkdir()
        (formed / case.name / "route.toml").write_text(route(case))
        stages = [onnx.load(models / model / "1" / "model.onnx") for model in case.models]
        (network / case.name / "1").mkdir(parents=True)
        onnx.save(naive(stages, case.thresholds), network / case.name / "1" / "model.onnx")
        (network / case.name / "model.toml").write_text(f"max_batch_size = {MAX_BATCH}\n")
    for path in [*formed.glob("*/model.toml"), *network.glob("*/model.toml")]:
        document = tomlkit.parse(path.read_text())
        document["engine"] = {"backend": "onnxruntime", "threads": threads, "instances": instances}
        path.write_text(tomlkit.dumps(document))
    return {NAIVE: network, FORMED: formed, TRAVELS: formed}


def route(case: Case) -> str:
    document = tomlkit.document()
    document["kind"] = "early_exit"
    exits = [{"model": model, "threshold": at} for model, at in zip(case.models, case.thresholds, strict=False)]
    document["stages"] = [*exits, {"model": case.models[-1]}]
    return tomlkit.dumps(document)


# Measuring


def measured(
    cases: Sequence[Case], models: Path, examples: Examples, directory: Path, options: argparse.Namespace
) -> tuple[list[Turn], dict[str, int]]:
    """Turns, of which the path is the case and the way; and how many images were answered with another class than
    expected."""
    ways = [way for way in (NAIVE, FORMED, TRAVELS) if any(way in case.ways for case in cases)]
    folders = repositories(cases, models, directory, options.threads, options.instances)
    with ExitStack() as servers:
        runs = {way: serve(folders[way], way, directory, examples, servers) for way in ways}
        turns = list(rounds(cases, runs, options))
        mistaken = {
            label(case, way): sum(
                case.expected[example] != found for example, found in runs[way].answered[case.name].classes.items()
            )
            for case in cases
            for way in case.ways
        }
    return turns, mistaken


def serve(repository: Path, way: str, directory: Path, examples: Examples, servers: ExitStack) -> Run:
    config = directory / f"{way.replace(', ', '-').replace(' ', '-')}.toml"
    settings: dict[str, object] = {"standby": 0}
    if way == TRAVELS:
        settings["max_held_bytes"] = 0
    config.write_text(tomlkit.dumps({"workers": settings}))
    say(f"starting a server: {way}")
    server = start(repository, config.with_suffix(".log"), config)
    servers.callback(server.stop)
    return Run(server, announced_target(server, START_TIMEOUT_S), examples, LOGITS)


def rounds(cases: Sequence[Case], runs: Mapping[str, Run], options: argparse.Namespace) -> Iterator[Turn]:
    for case in cases:
        for way in case.ways:
            say(f"warming up {label(case, way)}")
            runs[way].turn(case.name, max(options.concurrency), 0, options.seconds * WARM_UP_SHARE)
        for concurrency in options.concurrency:
            for number in range(1, options.rounds + 1):
                say(f"{case.name}, c={concurrency}, round {number} of {options.rounds}")
                for way in case.ways:
                    turn = runs[way].turn(case.name, concurrency, number, options.seconds)
                    yield replace(turn, path=label(case, way))


def label(case: Case, way: str) -> str:
    return f"{case.name}, {way}"


# Report


def heading(command: str, machine: Machine, turns: Sequence[Turn], options: argparse.Namespace) -> str:
    others = [turn.other_cores for turn in turns]
    return f"""\
# Stages beside the naive way, {machine.date}

`{command}`

{machine.cpu}, {machine.cores} cores shared by server and client (grpc.aio, c connections with one call in flight
each); {machine.system}; Python {machine.python}. ONNX Runtime; workers: {options.instances}, threads of each:
{options.threads}. Medians of {options.rounds} interleaved rounds of {options.seconds:g} s; ratios are taken within a
round and then summarised. Other processes used {statistics.mean(others):.2f} cores meanwhile, {max(others):.2f} at
worst.
{NOISY if statistics.mean(others) > QUIET_CORES else ""}"""


def speeds(case: Case, turns: Sequence[Turn]) -> str:
    concurrencies = list(dict.fromkeys(turn.concurrency for turn in turns))
    columns = (
        "c",
        "way",
        "answers/s",
        "of naive",
        "p50 ms",
        "of naive",
        "p99 ms",
        "of naive",
        "server CPU us per call",
    )
    rows = [speed(case, way, c, turns) for c in concurrencies for way in case.ways]
    return f"## {case.name}: {' -> '.join(case.models)}\n\n{table(columns, rows)}"


def speed(case: Case, way: str, concurrency: int, turns: Sequence[Turn]) -> list[str]:
    mine, control = (
        [turn for turn in turns if (turn.path, turn.concurrency) == (label(case, each), concurrency)]
        for each in (way, NAIVE)
    )
    return [
        str(concurrency),
        way,
        f"{median(mine, lambda turn: turn.rate):,.0f}",
        f"{ratio(mine, control, lambda turn: turn.rate):.2f}",
        f"{median(mine, lambda turn: turn.p50_ms):.2f}",
        f"{ratio(mine, control, lambda turn: turn.p50_ms):.2f}",
        f"{median(mine, lambda turn: turn.p99_ms):.2f}",
        f"{ratio(mine, control, lambda turn: turn.p99_ms):.2f}",
        f"{median(mine, lambda turn: turn.server_cpu_us):,.0f}",
    ]


def answers(mistaken: Mapping[str, int], images: int) -> str:
    rows = [(name, str(count)) for name, count in mistaken.items()]
    columns = ("way", f"of {images} images, answered with another class than alone")
    return f"## The same answers\n\n{table(columns, rows)}"


if __name__ == "__main__":
    sys.exit(main())
