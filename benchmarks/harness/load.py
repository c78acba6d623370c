"""Closed-loop load: a fixed number of calls, `concurrency` of them always in flight, one connection for each.

The client shares the machine with the server, so it has to be cheap: h2load (Debian's nghttp2-client) sends a
serialised request again and again for a few microseconds of CPU per call. It does not look at grpc-status, which is
why answers are counted in bytes here and checked for content before and after (`verify`).
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.workloads import Workload
from benchmarks.runtimes.header_fields import SAME
from benchmarks.runtimes.route_load import METHOD, pack

RUN_TIMEOUT_S = 300


class LoadError(Exception):
    """Calls failed or were answered with less than the tensor they should carry; figures would mean nothing."""


@dataclass(frozen=True)
class Load:
    """What a client saw: `seconds` from the first call's start to the last one's end, and a latency for each call."""

    seconds: float
    latencies_s: NDArray[np.float64]
    client_cpu_s: float

    @property
    def calls(self) -> int:
        return len(self.latencies_s)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.calls / self.seconds

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) * 1e3


class LoadGenerator(Protocol):
    """A client that sends one request again and again. Raises LoadError unless every call is answered."""

    name: str

    def run(self, target: str, workload: Workload, concurrency: int, calls: int) -> Load: ...


class H2Load:
    """h2load with a length-prefixed gRPC message as body."""

    name = "h2load"

    def __init__(self, executable: str) -> None:
        self._executable = executable

    def version(self) -> str:
        done = subprocess.run([self._executable, "--version"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def run(self, target: str, workload: Workload, concurrency: int, calls: int) -> Load:
        with tempfile.TemporaryDirectory() as scratch:
            body = Path(scratch, "body")
            body.write_bytes(length_prefixed(workload.request(0)))
            log = Path(scratch, "log")
            before = children_cpu_seconds()
            output = self._execute(target, body, log, concurrency, calls)
            client_cpu_s = children_cpu_seconds() - before
            check_summary(output, calls, workload.answer_bytes)
            return read_log(log, client_cpu_s)

    def _execute(self, target: str, body: Path, log: Path, concurrency: int, calls: int) -> str:
        headers = [f"--header={header}" for header in ("content-type: application/grpc", "te: trailers")]
        shape = [f"--requests={calls}", f"--clients={concurrency}", "--max-concurrent-streams=1", "--threads=1"]
        files = [f"--data={body}", f"--log-file={log}"]
        url = target if "://" in target else f"http://{target}"
        command = [self._executable, *shape, *headers, *files, f"{url}{METHOD}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise LoadError(f"{calls} calls were not all answered within {RUN_TIMEOUT_S} s") from None
        if done.returncode != 0:
            raise LoadError(f"h2load ended with status {done.returncode}: {done.stderr.strip()}")
        return done.stdout


class GrpcClient:
    """A grpc.aio client in a process of its own: several hundred microseconds of CPU per call, but a real client."""

    name = "grpc.aio client"

    def __init__(self, requests: Sequence[bytes] = ()) -> None:
        """Sends `requests` in turn; without any, the workload's first."""
        self._requests = list(requests)

    def run(self, target: str, workload: Workload, concurrency: int, calls: int) -> Load:
        arguments = [target, str(concurrency), str(calls), str(workload.answer_bytes)]
        return run_client("grpc_load", arguments, self._requests or [workload.request(0)])


class BareClient:
    """Our own HTTP/2 in a process of its own: h2load with another head for each call, and about as cheap."""

    def __init__(self, metadata: str = SAME) -> None:
        """`metadata` is one of `runtimes.header_fields.METADATA`."""
        self.name = f"bare HTTP/2 client, {metadata} metadata"
        self._metadata = metadata

    def run(self, target: str, workload: Workload, concurrency: int, calls: int) -> Load:
        limits = ["--calls", str(calls), "--answer-bytes", str(workload.answer_bytes)]
        arguments = [target, str(concurrency), *limits, "--metadata", self._metadata]
        return run_client("http2_load", arguments, [workload.request(0)])


def run_client(module: str, arguments: Sequence[str], requests: Sequence[bytes]) -> Load:
    """Run a client of `benchmarks.runtimes`. Raises LoadError with its last words."""
    before = children_cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.runtimes.{module}", *arguments],
        input=pack(list(requests)),
        capture_output=True,
        cwd=REPOSITORY_ROOT,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise LoadError(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    answer = json.loads(done.stdout)
    return Load(answer["seconds"], np.array(answer["latencies_s"]), children_cpu_seconds() - before)


def choose_load_generator(wanted: str) -> LoadGenerator:
    """Return the client named `wanted`: `h2load`, `grpc`, or `auto` for h2load where it is installed.

    Raises LoadError if h2load is asked for and absent.
    """
    executable = shutil.which("h2load")
    if wanted == "grpc" or (wanted == "auto" and executable is None):
        return GrpcClient()
    if executable is None:
        raise LoadError("h2load is not installed: `apt-get install nghttp2-client`, or use --client grpc")
    return H2Load(executable)


def length_prefixed(message: bytes) -> bytes:
    """Frame a message the way gRPC does: not compressed, four bytes of big-endian length."""
    return struct.pack(">BI", 0, len(message)) + message


def check_summary(output: str, calls: int, answer_bytes: int) -> None:
    """Raise LoadError unless all calls succeeded over HTTP and brought back a whole tensor each."""
    succeeded = required_number(r"(\d+) succeeded", output)
    received = required_number(r"\((\d+)\) data", output)
    if succeeded != calls:
        raise LoadError(f"{calls - succeeded} of {calls} calls failed")
    if received < calls * answer_bytes:
        raise LoadError(f"{received} bytes of answers to {calls} calls that should bring {answer_bytes} each")


def required_number(pattern: str, output: str) -> int:
    match = re.search(pattern, output)
    if match is None:
        raise LoadError(f"h2load printed no line like /{pattern}/:\n{output}")
    return int(match.group(1))


def read_log(log: Path, client_cpu_s: float) -> Load:
    """Read h2load's log: start in microseconds since the epoch, HTTP status, microseconds taken."""
    rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    started, taken = rows[:, 0], rows[:, 2]
    seconds = float((started + taken).max() - started.min()) / 1e6
    return Load(seconds, taken / 1e6, client_cpu_s)


def children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
