"""Time every engine that can run each model of some repositories on the CPU: `python -m benchmarks.engines`.

    offramp make examples/fashion/demo.toml --no-evaluation --repository build/fashion-repository
    python -m benchmarks.engines --repository build/fashion-repository --model fashion-teacher --model fashion-student

Beside the times stand the differences from the plain engine's answers, and what `auto` (`offramp tune`) takes on this
machine. It compares engines anew, in processes of its own, and remembers in `engines/` of the benchmark's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from offramp_server.model_spec import ModelSpec
from offramp_server.tuning.ahead import model_names, read_models
from offramp_server.tuning.key import library_versions

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.engine_report import Auto, EngineRun, draw, to_markdown
from benchmarks.harness.engine_timing import Timing, other_cores, time_model, usage
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.experiment import say
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.tables import as_json, without_home

RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    timing = Timing(tuple(options.threads), options.rounds, options.seconds, tuple(options.without))
    machine, before = describe_machine(), usage()
    models = [time_model(spec, timing) for repository in options.repository for spec in specs_of(repository, options)]
    others = other_cores(before)
    auto = {} if options.no_auto else taken_by_auto(options)
    command = shlex.join(["python", "-m", "benchmarks.engines", *(sys.argv[1:] if arguments is None else arguments)])
    run = EngineRun(command, machine, library_versions(), timing.rounds, timing.seconds, others, models, auto)
    write(run, options.results, options.name or f"engines-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the engines of this machine's CPU.")
    parser.add_argument("--repository", type=Path, action="append", required=True, help="may be given several times")
    parser.add_argument("--model", action="append", help="only this one; may be given several times")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each engine in each round")
    parser.add_argument("--length", type=int, help="of variable dimensions (default: what the model's warm-up takes)")
    parser.add_argument("--without", action="append", default=[], metavar="ENGINE", help="torch-compile takes longest")
    parser.add_argument("--no-auto", action="store_true", help="do not ask what auto takes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the files that are written")
    return parser.parse_args(arguments)


def specs_of(repository: Path, options: argparse.Namespace) -> list[ModelSpec]:
    specs = read_models(repository, names_of(repository, options))
    if options.length is None:
        return specs
    return [replace(spec, warmup=replace(spec.warmup, variable_dim=options.length)) for spec in specs]


def names_of(repository: Path, options: argparse.Namespace) -> list[str]:
    return [name for name in model_names(repository) if not options.model or name in options.model]


def taken_by_auto(options: argparse.Namespace) -> dict[str, Auto]:
    """Raises CalledProcessError if `offramp tune` fails."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="offramp-bench-") as folder:
        config = Path(folder, "offramp.toml")
        config.write_text(f"[engines]\ncache = {json.dumps(str(cache_directory('engines')))}\n")
        for repository in options.repository:
            chosen = [f"--model={name}" for name in names_of(repository, options)]
            if not chosen:
                continue
            say(f"asking auto about {repository}")
            command = [sys.executable, "-m", "offramp_server", "tune", str(repository), "--json", "--again", *chosen]
            done = subprocess.run([*command, "--config", str(config)], stdout=subprocess.PIPE, check=True)
            for each in json.loads(done.stdout):
                found[each["model"]] = as_auto(each)
    return found


def as_auto(tuned: dict[str, object]) -> Auto:
    variant = f" ({tuned['variant']})" if tuned["variant"] else ""
    return Auto(f"{tuned['backend']}{variant}", int(str(tuned["threads"])), str(tuned["reason"]).removeprefix("auto: "))


def write(run: EngineRun, directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    draw(run, directory / f"{name}.png")
    (directory / f"{name}.json").write_text(as_json(asdict(run)))
    text = without_home(to_markdown(run, f"{name}.png"))
    (directory / f"{name}.md").write_text(text)
    print(text)
    say(f"written to {directory / name}.md, .json and .png")


if __name__ == "__main__":
    sys.exit(main())
