"""The server's own requests/s with one model on one device, closed loop, for benchmarks/gpu.py."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu_engines import Array, images
from benchmarks.runtimes.export_models import CLASSES, IMAGE

# Requests of one item under way at a time.
CONCURRENCY = 64
SECONDS = 8.0
START_TIMEOUT_S = 180.0
_NEEDED = ("grpc", "google.protobuf", "prometheus_client", "aiohttp", "grpc_health", "grpc_reflection")
_READY = "ready grpc="


class NotInstalled(Exception):
    """What the server needs is not here. The message names it."""


@dataclass(frozen=True)
class Served:
    model: str
    backend: str
    concurrency: int
    requests_per_s: float
    p50_s: float
    p99_s: float
    # Of all answers, compared with one another: one image was sent by everybody.
    agrees: bool


def serve(root: Path, program: Path, name: str, backend: str, device: str) -> Served:
    """Raises NotInstalled, or RuntimeError with the reason where the server cannot be started."""
    missing = [module for module in _NEEDED if not _importable(module)]
    if missing:
        raise NotInstalled(f"{', '.join(missing)} not installed; pip install 'offramp[server]'")
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder) / "models" / name, program, backend, device)
        process = _start(root, Path(folder) / "models")
        try:
            target = _target(process)
            return asyncio.run(_load(target, name, backend))
        finally:
            process.terminate()
            process.wait(30)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _write_model(folder: Path, program: Path, backend: str, device: str) -> None:
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(program, folder / "1" / "model.pt2")
    (folder / "model.toml").write_text(
        f"""\
max_batch_size = 32

[[inputs]]
name = "input"
datatype = "FP32"
dims = {list(IMAGE)}

[[outputs]]
name = "output"
datatype = "FP32"
dims = [{CLASSES}]

[engine]
backend = "{backend}"
device = "{device}"
"""
    )


def _start(root: Path, repository: Path) -> subprocess.Popen[str]:
    paths = [str(root / part) for part in ("common", "proto", "server", "adapters", "clients/python")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "offramp_server", "serve", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--http-port", "0"]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


def _target(process: subprocess.Popen[str]) -> str:
    """Read in a thread, so that a server that says nothing does not hold this up for ever."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    until = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            continue
        if _READY in line:
            return line.split(_READY, 1)[1].split()[0]
    raise RuntimeError(f"the server did not start (exit code {process.poll()}); its messages are above")


def _read(output: Iterable[str], lines: queue.SimpleQueue[str]) -> None:
    for line in output:
        lines.put(line)


async def _load(target: str, name: str, backend: str) -> Served:
    import offramp_client

    inputs = {"input": images(1)}
    answers: list[Array] = []
    seconds: list[float] = []
    async with offramp_client.AsyncClient(target) as client:
        answers += [(await client.infer(name, inputs))["output"] for _ in range(20)]
        started = time.perf_counter()
        until = started + SECONDS

        async def caller() -> None:
            while time.perf_counter() < until:
                sent = time.perf_counter()
                answers.append((await client.infer(name, inputs))["output"])
                seconds.append(time.perf_counter() - sent)

        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
        wall = time.perf_counter() - started
    p50, p99 = np.quantile(seconds, [0.5, 0.99]).tolist()
    return Served(name, backend, CONCURRENCY, len(seconds) / wall, p50, p99, agree(answers))


def agree(answers: Sequence[Array]) -> bool:
    """But for another order of additions. Those that are no numbers do not."""
    # Of numpy, whose maximum is no number where one of them is none.
    off = np.max([np.abs(answer - answers[0]).max() for answer in answers])
    return bool(off <= 1e-4 * np.abs(answers[0]).max())
