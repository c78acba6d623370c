"""Serve the Fashion-MNIST family, send it real test images and print a table: `make demo`.

The models are those that `offramp make` has made of `demo.toml`. The server is a process of its own, started as
`offramp serve` would be, and reached over gRPC through the SDK.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from data import SAMPLE
from matplotlib.figure import Figure
from numpy.typing import NDArray
from offramp_client import AsyncClient, InferResult, OfframpError
from offramp_common.tables import table
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.data.sources import open_dataset
from offramp_server.cli.load import Measurement, closed_loop

HERE = Path(__file__).parent
RECIPE = HERE / "demo.toml"
PICTURE = HERE / "ankle-boot.png"
DEFAULT_REPOSITORY = Path("build") / "fashion-repository"
DEFAULT_PICTURE = Path("build") / "fashion-paths.png"
TEACHER = "fashion-teacher"
CALLERS = 8
READY_SECONDS, STOP_SECONDS = 300.0, 60.0
HEADER = ("model", "engine", "accuracy", "agreement", "p50 ms", "p99 ms", "requests/s", "bytes")
# Seconds that the server may spend on choosing the engine of a model at its first start.
TUNING_SECONDS = "15"
# One network in parts, which only its route runs.
STAGES = "fashion-exits"
# What answers a request: models by themselves, and routes.
PATHS = MappingProxyType(
    {
        "teacher alone": TEACHER,
        "student alone": "fashion-student",
        "ensemble": "fashion-ensemble",
        "cascade": "fashion-cascade",
        "cascade of three": "fashion-cascade-3",
        "multi-exit": "fashion-multi-exit",
    }
)
PATHS_HEADER = ("path", "accuracy", "agreement", "p50 ms", "p99 ms", "requests/s", "answered by")


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


@dataclass(frozen=True)
class Model:
    """A model that is served, and what was measured of it."""

    name: str
    engine: str
    # Why this one.
    reason: str
    size_bytes: int
    # The class it gave to each image of the sample, int64 [N].
    answers: NDArray[np.int64]
    # One caller, who waits for each answer; then CALLERS of them.
    alone: Measurement
    together: Measurement

    def cells(self, labels: NDArray[np.int64], teacher: Model) -> tuple[str, ...]:
        return (
            self.name,
            self.engine.partition(":")[0],
            f"{(self.answers == labels).mean():.1%}",
            f"{(self.answers == teacher.answers).mean():.1%}",
            f"{self.alone.percentile(50) * 1e3:.2f}",
            f"{self.alone.percentile(99) * 1e3:.2f}",
            f"{self.together.rate:.0f}",
            f"{self.size_bytes:,}",
        )


@dataclass(frozen=True)
class Way:
    """A path that requests take, by the name that clients call."""

    title: str
    name: str
    # int64 [N]
    answers: NDArray[np.int64]
    # How many images each model or exit answered.
    by: Mapping[str, int]
    load: Measurement

    def cells(self, labels: NDArray[np.int64], teacher: NDArray[np.int64]) -> tuple[str, ...]:
        shares = (f"{name} {count / len(labels):.0%}" for name, count in self.by.items())
        return (
            self.title,
            f"{(self.answers == labels).mean():.1%}",
            f"{(self.answers == teacher).mean():.1%}",
            f"{self.load.percentile(50) * 1e3:.1f}",
            f"{self.load.percentile(99) * 1e3:.1f}",
            f"{self.load.rate:.0f}",
            ", ".join(shares),
        )


async def demonstrate(repository: Path, seconds: float, sample: Dataset) -> tuple[list[Model], list[Way]]:
    """The models of ``repository``, the largest first, each measured with ``sample`` for twice ``seconds``, and the
    ways of answering with them, for ``seconds`` each.

    Raises DemoError if the server or something that it serves does not come up, or if the server does not leave as it
    should.
    """
    require_teacher(repository)
    async with running_server(repository) as address, AsyncClient(address, timeout=60.0) as client:
        models = []
        for name, size_bytes in await served_models(client, repository):
            say(f"sending {len(sample)} test images to {name}, then measuring it")
            models.append(await measure(client, name, size_bytes, sample, seconds))
        ways = []
        for title, name in PATHS.items():
            say(f"sending the same images to {name}: {title}")
            ways.append(await measure_way(client, title, name, sample, seconds))
        await classify_picture(client, models[-1].name)
    return models, ways


def require_teacher(repository: Path) -> None:
    if not (repository / TEACHER).is_dir():
        raise DemoError(
            f"{repository} does not hold {TEACHER}; make it with: "
            f"offramp make {os.path.relpath(RECIPE)} --no-evaluation --repository {repository}"
        )


@asynccontextmanager
async def running_server(repository: Path) -> AsyncIterator[str]:
    """`offramp serve` on free ports: yields its gRPC address once it is ready, and lets it drain in the end."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "offramp_server", "serve", "--model-repository", str(repository),
        "--grpc-port", "0", "--http-port", "0", "--log-level", "warning",
        stdout=asyncio.subprocess.PIPE, env={"OFFRAMP_ENGINES__BUDGET": TUNING_SECONDS, **os.environ},
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
    ready = re.fullmatch(r"ready grpc=(\S+) http=\S+ models=\d+", line)
    if ready is None:
        raise DemoError("the server ended before it was ready; what it said is above")
    say(f"after {time.monotonic() - started:.1f} s: {line}")
    return ready[1]


async def served_models(client: AsyncClient, repository: Path) -> list[tuple[str, int]]:
    """Name and bytes of the model files that are served, the largest first. Raises DemoError if a model is not."""
    index = await client.repository_index()
    ready = {entry.name: entry.version for entry in index if entry.ready}
    for entry in index:
        if entry.name not in ready:
            raise DemoError(f"{entry.name} cannot be served: {entry.reason}")
    files = {name: model_file(repository / name / version) for name, version in ready.items()}
    sizes = {
        name: file.stat().st_size for name, file in files.items() if file is not None and not name.startswith(STAGES)
    }
    return sorted(sizes.items(), key=lambda model: model[1], reverse=True)


def model_file(version: Path) -> Path | None:
    """None for a route, which has no versions."""
    return next(version.glob("model.*"), None)


async def measure(client: AsyncClient, model: str, size_bytes: int, sample: Dataset, seconds: float) -> Model:
    config = await client.model_config(model)
    pixels = tensors(sample)[0].numpy()[:, None]
    answers = classes(await each_alone(client, model, pixels))
    images = itertools.cycle(pixels)

    def call() -> Awaitable[object]:
        return client.infer(model, {"image": next(images)})

    alone = await closed_loop(call, 1, seconds)
    together = await closed_loop(call, CALLERS, seconds)
    for measurement in (alone, together):
        if measurement.errors:
            raise DemoError(f"requests failed: {dict(measurement.errors)}")
    variant, reason = (config.parameters.get(f"engine.{key}", "") for key in ("variant", "reason"))
    engine = f"{config.backend}: {variant}" if variant else config.backend
    return Model(model, engine, reason, size_bytes, answers, alone, together)


async def measure_way(client: AsyncClient, title: str, name: str, sample: Dataset, seconds: float) -> Way:
    pixels = tensors(sample)[0].numpy()[:, None]
    results = await each_alone(client, name, pixels)
    images = itertools.cycle(pixels)
    load = await closed_loop(lambda: client.infer(name, {"image": next(images)}), CALLERS, seconds)
    if load.errors:
        raise DemoError(f"requests to {name} failed: {dict(load.errors)}")
    return Way(title, name, classes(results), Counter(map(answered_by, results)), load)


def answered_by(result: InferResult) -> str:
    """The exit that answered, or else every model that took part."""
    path = result.path
    return path.exit or " + ".join(model.partition(":")[0] for model in path.models) or result.model_name


async def each_alone(client: AsyncClient, model: str, images: NDArray[Any]) -> list[InferResult]:
    """Every image is a request of its own, as from an app; the server makes the batches."""
    places = asyncio.Semaphore(CALLERS)

    async def answer(image: NDArray[Any]) -> InferResult:
        async with places:
            return await client.infer(model, {"image": image})

    return await asyncio.gather(*map(answer, images))


def classes(results: Sequence[InferResult]) -> NDArray[np.int64]:
    return np.array([int(result["logits"].argmax()) for result in results])


async def classify_picture(client: AsyncClient, model: str) -> None:
    """What an app would do: send the file as it is, and let the server decode it."""
    said = await client.classify(model, image=PICTURE, top_k=3)
    classes = ", ".join(f"{each.label} ({each.score:.1f})" for each in said)
    say(f"{PICTURE.name}, sent to {model} as it is: {classes}")


def say(text: str) -> None:
    print(text, flush=True)


def report(models: Sequence[Model], ways: Sequence[Way], sample: Dataset, seconds: float) -> None:
    teacher = next(model for model in models if model.name == TEACHER)
    say("")
    say(table(HEADER, [model.cells(sample.labels, teacher) for model in models], right=range(2, len(HEADER))))
    say(
        f"\nagreement is with {TEACHER}, and like accuracy on {len(sample)} images; p50 and p99 with one caller, "
        f"requests/s with {CALLERS}, one image a request, {seconds:g} s each; client and server share "
        f"{os.cpu_count()} cores.\n"
    )
    say("which engine runs each of them, chosen at the server's first start and remembered:\n")
    say(table(("model", "engine", "why"), [(model.name, model.engine, model.reason) for model in models]))
    say("")
    rows = [way.cells(sample.labels, teacher.answers) for way in ways]
    say(table(PATHS_HEADER, rows, right=range(1, len(PATHS_HEADER) - 1)))
    say(f"\nas above, all of it with {CALLERS} callers; which exit answered is said with every answer.")


def draw_ways(ways: Sequence[Way], labels: NDArray[np.int64], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for way in ways:
        cost, accuracy = 1e3 / way.load.rate, 100 * (way.answers == labels).mean()
        axes.plot(cost, accuracy, "o", label=way.title)
    axes.set_xlabel(f"milliseconds of the machine for each answer, with {CALLERS} callers")
    axes.set_ylabel(f"accuracy on {len(labels)} test images, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    # Beside the picture: paths that cost alike would have their names on top of each other.
    figure.legend(loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the Fashion-MNIST models, measure them and leave.")
    parser.add_argument("--repository", type=Path, default=DEFAULT_REPOSITORY, help="what to serve (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (%(default)s)")
    parser.add_argument("--picture", type=Path, default=DEFAULT_PICTURE, help="where to draw the paths (%(default)s)")
    options = parser.parse_args()
    sample = open_dataset(SAMPLE, "test")
    try:
        models, ways = asyncio.run(demonstrate(options.repository, options.seconds, sample))
    except (DemoError, OfframpError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report(models, ways, sample, options.seconds)
    draw_ways(ways, sample.labels, options.picture)
    say(f"{options.picture} shows the paths: accuracy against cost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
