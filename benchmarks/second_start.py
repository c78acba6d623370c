"""How long is a repository not ready, the first time and afterwards? `python -m benchmarks.second_start`.

    offramp make examples/fashion/demo.toml --no-evaluation --repository build/fashion-repository
    python -m benchmarks.second_start --repository build/fashion-repository

`offramp serve` is started again and again with an engine cache that is empty at first. Its own metrics say how many
engines were compared and built meanwhile; from the second start on that has to be nothing, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness.environments import REPOSITORY_ROOT, project_environment
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.processes import ServerProcess
from benchmarks.harness.tables import as_json, table

RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
START_TIMEOUT_S = 1800.0
COUNTERS = ("offramp_engine_tunings_total", "offramp_engine_builds_total")


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the server."""

    seconds: float
    models: int
    # Since it began, over all models.
    tunings: int
    builds: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="offramp-second-start-") as folder:
        starts = [started(options, Path(folder), number) for number in range(options.starts)]
    command = shlex.join(
        ["python", "-m", "benchmarks.second_start", *(sys.argv[1:] if arguments is None else arguments)]
    )
    report = to_markdown(starts, command, options.budget)
    print(report)
    write(
        options,
        report,
        {"command": command, "machine": asdict(describe_machine()), "starts": list(map(asdict, starts))},
    )
    return int(any(start.tunings or start.builds for start in starts[1:]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the first start of a repository and the next ones.")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--budget", type=float, help="seconds for each model at its first load (default: the server's)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the report's files")
    return parser.parse_args(arguments)


def started(options: argparse.Namespace, folder: Path, number: int) -> Start:
    budget = {} if options.budget is None else {"OFFRAMP_ENGINES__BUDGET": str(options.budget)}
    environment = os.environ | {"OFFRAMP_ENGINES__CACHE": str(folder / "cache"), **budget}
    command = [project_environment().root / "bin" / "offramp", "serve", "--model-repository", options.repository]
    began = time.perf_counter()
    server = ServerProcess([*command, "--grpc-port", "0", "--http-port", "0"], environment, folder / f"{number}.log")
    try:
        line = server.wait_for_line("ready ", START_TIMEOUT_S)
        seconds = time.perf_counter() - began
        said = dict(part.split("=", 1) for part in line.split()[1:])
        tunings, builds = counted(said["http"])
    finally:
        server.stop()
    return Start(seconds, int(said["models"]), tunings, builds)


def counted(address: str) -> tuple[int, int]:
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        page = answer.read().decode()
    totals = [
        sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))
        for name in COUNTERS
    ]
    return int(totals[0]), int(totals[1])


def to_markdown(starts: Sequence[Start], command: str, budget: float | None) -> str:
    rows = [
        [str(number), f"{start.seconds:.1f}", str(start.models), str(start.tunings), str(start.builds)]
        for number, start in enumerate(starts, 1)
    ]
    limit = "the server's own budget for each model" if budget is None else f"{budget:g} s for each model at most"
    return "\n".join(
        [
            f"# Time to ready, {datetime.now(UTC):%Y-%m-%d}",
            "",
            f"`{command}`",
            "",
            f"The engine cache is empty at the first start; {limit}. Polled ten times a second.",
            "",
            table(
                ["start", "ready after s", "models and routes", "models compared engines for", "engines built"], rows
            ),
            "",
        ]
    )


def write(options: argparse.Namespace, report: str, values: dict[str, object]) -> None:
    name = options.name or f"second-start-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.md").write_text(report)
    (options.results / f"{name}.json").write_text(as_json(values))


if __name__ == "__main__":
    sys.exit(main())
