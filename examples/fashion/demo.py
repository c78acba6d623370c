"""Serve the Fashion-MNIST teacher and students, send them real test images and print a table: `make demo`.

The server is a process of its own, started as `offramp serve` would be, and reached over gRPC through the SDK.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data import Split, test_sample
from export import TARGETS, WEIGHTS, ExportError, Target, build_repository
from numpy.typing import NDArray
from offramp_client import AsyncClient, OfframpError
from offramp_common.tables import table
from offramp_server.cli.load import Measurement, closed_loop

DEFAULT_REPOSITORY = Path("build") / "fashion-repository"
CALLERS = 8
READY_SECONDS, STOP_SECONDS = 300.0, 60.0
HEADER = ("model", "engine", "accuracy", "p50 ms", "p99 ms", "requests/s", "bytes")


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


@dataclass(frozen=True)
class Row:
    """What was measured of one model."""

    target: Target
    engine: str
    accuracy: float
    # One caller, who waits for each answer; then CALLERS of them.
    alone: Measurement
    together: Measurement
    size_bytes: int

    def cells(self) -> tuple[str, ...]:
        return (
            self.target.name,
            self.engine,
            f"{self.accuracy:.1%}",
            f"{self.alone.percentile(50) * 1e3:.2f}",
            f"{self.alone.percentile(99) * 1e3:.2f}",
            f"{self.together.rate:.0f}",
            f"{self.size_bytes:,}",
        )


async def demonstrate(repository: Path, seconds: float) -> list[Row]:
    """Raises DemoError if the server does not come up, or does not leave as it should."""
    sample = test_sample()
    async with running_server(repository) as address, AsyncClient(address, timeout=60.0) as client:
        rows = []
        for target in TARGETS:
            say(f"sending {len(sample.labels)} test images to {target.name}, then measuring it")
            rows.append(await measure(client, target, repository, sample, seconds))
    return rows


@asynccontextmanager
async def running_server(repository: Path) -> AsyncIterator[str]:
    """`offramp serve` on free ports: yields its gRPC address once it is ready, and lets it drain in the end."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "offramp_server", "serve", "--model-repository", str(repository),
        "--grpc-port", "0", "--http-port", "0", "--log-level", "warning",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield await ready_address(server)
    finally:
        if server.returncode is None:
            server.terminate()
        status = await stopped(server)
    if status != 0:
        raise DemoError(f"the server was asked to stop and left with exit code {status} instead of 0")
    say("the server drained and left with exit code 0")


async def stopped(server: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            return await server.wait()
    except TimeoutError:
        server.kill()
        raise DemoError(f"the server was asked to stop and had not after {STOP_SECONDS:g} s") from None


async def ready_address(server: asyncio.subprocess.Process) -> str:
    assert server.stdout is not None
    started = time.monotonic()
    try:
        async with asyncio.timeout(READY_SECONDS):
            line = (await server.stdout.readline()).decode().strip()
    except TimeoutError:
        raise DemoError(f"the server was not ready within {READY_SECONDS:g} s") from None
    ready = re.fullmatch(r"ready grpc=(\S+) http=\S+ models=(\d+)", line)
    if ready is None:
        raise DemoError("the server ended before it was ready; what it said is above")
    if int(ready[2]) != len(TARGETS):
        raise DemoError(f"{ready[2]} of {len(TARGETS)} models can be served; the server's log above says why")
    say(f"after {time.monotonic() - started:.1f} s: {line}")
    return ready[1]


async def measure(client: AsyncClient, target: Target, repository: Path, sample: Split, seconds: float) -> Row:
    config = await client.model_config(target.name)
    accuracy = await share_of_right_answers(client, target.name, sample)
    images = itertools.cycle(sample.pixels()[:, None])

    def call() -> Awaitable[object]:
        return client.infer(target.name, {"image": next(images)})

    alone = await closed_loop(call, 1, seconds)
    together = await closed_loop(call, CALLERS, seconds)
    for measurement in (alone, together):
        if measurement.errors:
            raise DemoError(f"requests failed: {dict(measurement.errors)}")
    size = (repository / target.name / "1" / target.file).stat().st_size
    return Row(target, config.backend, accuracy, alone, together, size)


async def share_of_right_answers(client: AsyncClient, model: str, sample: Split) -> float:
    """Every image is a request of its own, as from an app; the server makes the batches."""
    places = asyncio.Semaphore(CALLERS)

    async def is_right(image: NDArray[np.float32], label: int) -> bool:
        async with places:
            result = await client.infer(model, {"image": image})
        return int(result["logits"].argmax()) == label

    questions = zip(sample.pixels()[:, None], sample.labels, strict=True)
    answers = await asyncio.gather(*(is_right(image, int(label)) for image, label in questions))
    return sum(answers) / len(answers)


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the Fashion-MNIST models, measure them and leave.")
    parser.add_argument("--repository", type=Path, default=DEFAULT_REPOSITORY, help="filled on first use (%(default)s)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the .safetensors (the committed ones)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (%(default)s)")
    options = parser.parse_args()
    try:
        say(f"exporting what is not yet in {options.repository}")
        build_repository(options.repository, options.weights)
        rows = asyncio.run(demonstrate(options.repository, options.seconds))
    except (DemoError, ExportError, OfframpError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say("")
    say(table(HEADER, [row.cells() for row in rows], right=range(2, len(HEADER))))
    say(
        f"\np50 and p99 with one caller, requests/s with {CALLERS}, one image a request, {options.seconds:g} s each; "
        f"client and server share {os.cpu_count()} cores."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
