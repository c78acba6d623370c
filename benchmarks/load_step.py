"""Measure what levels of load do for a cascade: `python -m benchmarks.load_step --repository DIR --data FILE`.

Requests come as a Poisson process: at half of what the teacher alone can answer, then at three times that, then at
half again. The same cascade of student and teacher is called under two names, in turns: "fixed" keeps its threshold,
"levels" has other thresholds for the levels of load. Reported are, over time and by phase, the share of requests that
were answered within their deadline, the accuracy of the answers, and the level.

    offramp make examples/fashion/demo.toml --no-evaluation --repository build/fashion-repository
    python examples/fashion/data.py --halves build/fashion-halves
    python -m benchmarks.load_step --repository build/fashion-repository --data build/fashion-halves/unseen.npz
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from offramp_client.inference import decode
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.cpu import machine_busy_seconds
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.experiment import say
from benchmarks.harness.labelled import Examples, load_examples
from benchmarks.harness.load import children_cpu_seconds
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.processes import ServerProcess
from benchmarks.harness.steps import Plan, Turn
from benchmarks.harness.steps_report import FIXED, LEVELS, binned, draw, heading, phase_table
from benchmarks.harness.tables import without_home
from benchmarks.routes import Run, start, with_engine
from benchmarks.runtimes.route_load import pack, unpack
from benchmarks.servers.base import announced_target

START_TIMEOUT_S = 300.0
RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
_LEVEL_LINE = re.compile(r"^(\S+) .*\bload: (\w+), was (\w+)")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    examples = load_examples(options.data, options.input, options.part)
    machine = describe_machine()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = cache_directory("runs", stamp)
    server = start(repository(options, directory), directory / "server.log", write_config(options, directory))
    try:
        target = announced_target(server, START_TIMEOUT_S)
        capacity = teacher_capacity(Run(server, target, examples, options.output), options)
        phases = tuple((options.seconds, step * capacity) for step in options.steps)
        plan = Plan(phases, options.deadline, options.rounds)
        turns = run(server, target, plan, examples, options)
    finally:
        server.stop()
    levels = level_changes(server.log)
    command = shlex.join(["python", "-m", "benchmarks.load_step", *given])
    report = "\n".join([heading(command, machine, capacity, plan, turns, options), phase_table(turns, plan)])
    write(report, turns, levels, plan, options.results, f"load-step-{stamp}")
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.load_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--repository", type=Path, required=True)
    result.add_argument(
        "--data", type=Path, required=True, help="labelled examples: .npz with images, or texts in .tsv"
    )
    result.add_argument("--part", default="test", help="of a folder (%(default)s)")
    result.add_argument("--teacher", default="fashion-teacher", help="(%(default)s)")
    result.add_argument("--student", default="fashion-student", help="(%(default)s)")
    result.add_argument("--input", default="image", help="the input that takes them (%(default)s)")
    result.add_argument("--output", default="logits", help="the output that has the classes (%(default)s)")
    result.add_argument("--engine", help="[engine] backend of both models, instead of what each says")
    result.add_argument("--threads", type=int, default=1, help="[engine] threads, with --engine (%(default)s)")
    result.add_argument(
        "--thresholds", type=floats, default=[0.97, 0.9, 0.6, 0.3], help="idle, normal, busy, overloaded (%(default)s)"
    )
    result.add_argument(
        "--shed", type=float, default=0.0, help="share of requests refused when overloaded (%(default)s)"
    )
    result.add_argument("--target-wait", type=float, default=0.1, help="seconds that requests may wait (%(default)s)")
    result.add_argument("--deadline", type=float, default=0.25, help="seconds that callers wait (%(default)s)")
    result.add_argument("--steps", type=floats, default=[0.5, 3.0, 0.5], help="of the teacher's capacity (%(default)s)")
    result.add_argument("--seconds", type=float, default=20.0, help="length of a phase (%(default)s)")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--callers", type=int, default=32, help="that measure the capacity (%(default)s)")
    result.add_argument("--results", type=Path, default=RESULTS, help="folder for the report (%(default)s)")
    return result


def floats(text: str) -> list[float]:
    return [float(word) for word in text.split(",") if word]


# What is served


def repository(options: argparse.Namespace, directory: Path) -> Path:
    """Teacher and student, and the same cascade of both under two names."""
    bare = directory / "bare"
    for model in (options.teacher, options.student):
        shutil.copytree(options.repository / model, bare / model)
    models = with_engine(bare, directory / "models", options.engine, options.threads)
    idle, normal, busy, overloaded = options.thresholds
    stages = (
        f'kind = "early_exit"\n[[stages]]\nmodel = "{options.student}"\nthreshold = {normal}\n'
        f'[[stages]]\nmodel = "{options.teacher}"\n'
    )
    rules = (
        f"[load.idle]\nthresholds = [{idle}]\n[load.busy]\nthresholds = [{busy}]\n"
        f"[load.overloaded]\nthresholds = [{overloaded}]\nshed = {options.shed}\n"
    )
    for name, text in ((FIXED, stages), (LEVELS, stages + rules)):
        (models / name).mkdir()
        (models / name / "route.toml").write_text(text)
    return models


def write_config(options: argparse.Namespace, directory: Path) -> Path:
    path = directory / "config.toml"
    path.write_text(f"[load]\ntarget_wait = {options.target_wait}\n")
    return path


# Measuring


def teacher_capacity(run: Run, options: argparse.Namespace) -> float:
    """Answers per second of the teacher alone, to callers that never pause."""
    say(f"measuring what {options.teacher} alone can answer")
    run.turn(options.teacher, options.callers, 0, options.seconds / 4)
    return run.turn(options.teacher, options.callers, 1, options.seconds / 2).rate


def run(server: ServerProcess, target: str, plan: Plan, examples: Examples, options: argparse.Namespace) -> list[Turn]:
    turns = []
    for number in range(1, plan.rounds + 1):
        for route in (FIXED, LEVELS) if number % 2 else (LEVELS, FIXED):
            say(f"round {number} of {plan.rounds}: {route}")
            turns.append(turn(server, target, plan, examples, options, route, number))
    return turns


def turn(
    server: ServerProcess,
    target: str,
    plan: Plan,
    examples: Examples,
    options: argparse.Namespace,
    route: str,
    number: int,
) -> Turn:
    command = [sys.executable, "-m", "benchmarks.runtimes.open_load", target, str(number), str(plan.deadline)]
    command += [f"{seconds}:{rate}" for seconds, rate in plan.phases]
    busy, cpu, client = machine_busy_seconds(), server.cpu_seconds(), children_cpu_seconds()
    done = subprocess.run(
        command, input=pack(examples.requests(route)), stdout=subprocess.PIPE, cwd=REPOSITORY_ROOT, check=True
    )
    ours = server.cpu_seconds() - cpu + children_cpu_seconds() - client
    others = max(0.0, machine_busy_seconds() - busy - ours) / plan.edges[-1]
    line, _, rest = done.stdout.partition(b"\n")
    said, answers = json.loads(line), list(unpack(rest))
    right, early = judged(said["requests"], answers, examples, options.output, options.student)
    return Turn(route, number, said["began"], said["due"], said["latencies_s"], said["statuses"], right, early, others)


def judged(
    requests: Sequence[int], answers: Sequence[bytes], examples: Examples, output: str, student: str
) -> tuple[list[bool], list[bool]]:
    """Of each answer whether it is right, and whether it is the student's; False if there is none."""
    right, early = [], []
    for request, answer in zip(requests, answers, strict=True):
        result = decode(pb.ModelInferResponse.FromString(answer)) if answer else None
        right.append(result is not None and int(result[output].argmax()) == examples.labels[request])
        early.append(result is not None and result.path.exit == student)
    return right, early


def level_changes(log: Path) -> list[tuple[float, str]]:
    """From the server's log: seconds since 1970, and the level from then on."""
    found = (_LEVEL_LINE.match(line) for line in log.read_text(errors="replace").splitlines())
    return [(datetime.fromisoformat(match[1]).timestamp(), match[2]) for match in found if match]


# Writing


def write(
    report: str, turns: Sequence[Turn], levels: Sequence[tuple[float, str]], plan: Plan, directory: Path, name: str
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    draw(turns, levels, plan, directory / f"{name}.png")
    changes = [{"at": at, "level": level} for at, level in levels]
    summary = {"plan": asdict(plan), "turns": [binned(each, plan) for each in turns], "levels": changes}
    (directory / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = f"{report}\n\n![over time]({name}.png)\n"
    (directory / f"{name}.md").write_text(without_home(text))
    print(text)
    say(f"written to {directory / name}.md, .json and .png")


if __name__ == "__main__":
    sys.exit(main())
