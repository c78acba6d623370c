"""Open loop: requests come when a Poisson process says so, whether or not those before them were answered.

A closed loop slows down with the server, so its latencies at saturation say nothing of the queue that real callers
stand in. Here every server is offered the same rates, from the same seeds, by client processes of one connection each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.cpu import machine_busy_seconds
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.load import LoadError, children_cpu_seconds
from benchmarks.harness.workloads import Workload
from benchmarks.runtimes.route_load import pack, unpack
from benchmarks.servers.base import Server

# Time for the clients to start and connect.
HEAD_START_S = 1.5
GIVEN_UP = ("DEADLINE_EXCEEDED", "CANCELLED")
# A server counts as settled once it uses less than this, in cores, over SETTLE_LOOK_S.
SETTLED_CORES = 0.1
SETTLE_LOOK_S = 0.3
SETTLE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class OpenPlan:
    """What is offered, as shares of the closed-loop capacity of the slowest and of the fastest server."""

    of_slowest: Sequence[float] = (0.5, 0.9)
    of_fastest: Sequence[float] = (0.5, 0.9)
    rounds: int = 2
    seconds: float = 5.0
    # How long a caller waits; what is not answered by then has failed.
    deadline_s: float = 1.0
    clients: int = 4
    # What the clients, which are Python, can send beside a server on a small machine without being what is measured.
    most_per_s: float = 1500.0


@dataclass(frozen=True)
class OpenSample:
    """One server under one offered rate. Latencies run from the moment at which a request was due."""

    server: str
    workload: str
    rate: float  # offered per second
    round: int
    requests: int
    in_time: int
    refused: int  # answered with a status that is neither OK nor the caller's own giving up
    p50_ms: float  # of all requests; one that was not answered in time took for ever
    p99_ms: float
    late_p99_ms: float  # how late the client was in sending
    cpu_us: float  # the server's, per request
    other_cores: float


def offered_rates(capacities: Sequence[float], plan: OpenPlan) -> list[float]:
    """Return the rates per second that every server is offered, rising, given what each can answer at most."""
    slowest, fastest = min(capacities), max(capacities)
    wanted = [share * slowest for share in plan.of_slowest] + [share * fastest for share in plan.of_fastest]
    return sorted({float(f"{min(rate, plan.most_per_s):.2g}") for rate in wanted})


def measure_open(server: Server, workload: Workload, rate: float, turn: int, plan: OpenPlan) -> OpenSample:
    """Offer `rate` requests per second. Raises LoadError if an answer is too short or a client fails."""
    settle(server)
    busy, cpu, client = machine_busy_seconds(), server.cpu_seconds(), children_cpu_seconds()
    started = time.monotonic()
    sent = [read(output, workload) for output in run_clients(server.target, workload, rate, turn, plan)]
    elapsed, server_s = time.monotonic() - started, server.cpu_seconds() - cpu
    others = machine_busy_seconds() - busy - server_s - (children_cpu_seconds() - client)
    return summarise(server.name, workload.name, rate, turn, sent, plan.deadline_s, server_s, others / elapsed)


def run_clients(target: str, workload: Workload, rate: float, turn: int, plan: OpenPlan) -> list[bytes]:
    """Return what each client wrote. The seeds depend on the round and the client, and on nothing else."""
    begin = time.time() + HEAD_START_S
    command = [sys.executable, "-m", "benchmarks.runtimes.open_load", "--connections=1", f"--begin={begin}", target]
    share = f"{plan.seconds}:{rate / plan.clients}"
    clients = [
        subprocess.Popen(
            [*command, str(turn * plan.clients + index), str(plan.deadline_s), share],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY_ROOT,
        )
        for index in range(plan.clients)
    ]  # fmt: skip
    requests = pack([workload.request(index) for index in range(len(workload.inputs))])
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(requests)
        client.stdin.close()
    return [finished(client) for client in clients]


def finished(client: subprocess.Popen[bytes]) -> bytes:
    assert client.stdout is not None
    with client.stdout:
        output = client.stdout.read()
    if client.wait() != 0:
        raise LoadError(f"a client of the open loop ended with status {client.returncode}")
    return output


@dataclass(frozen=True)
class Sent:
    """What one client saw, an entry for each request."""

    latencies_s: NDArray[np.float64]
    late_s: NDArray[np.float64]
    statuses: NDArray[np.str_]


def read(output: bytes, workload: Workload) -> Sent:
    line, _, rest = output.partition(b"\n")
    said = json.loads(line)
    for status, answer in zip(said["statuses"], unpack(rest), strict=True):
        if status == "OK" and len(answer) < workload.answer_bytes:
            raise LoadError(f"an answer of {len(answer)} bytes that should bring {workload.answer_bytes}")
    return Sent(np.array(said["latencies_s"]), np.array(said["late_s"]), np.array(said["statuses"], dtype=np.str_))


def summarise(
    server: str,
    workload: str,
    rate: float,
    turn: int,
    sent: Sequence[Sent],
    deadline_s: float,
    cpu_s: float,
    other_cores: float,
) -> OpenSample:
    latencies = np.concatenate([each.latencies_s for each in sent])
    statuses = np.concatenate([each.statuses for each in sent])
    in_time = (statuses == "OK") & (latencies <= deadline_s)
    waited = np.where(in_time, latencies, np.inf)
    return OpenSample(
        server=server,
        workload=workload,
        rate=rate,
        round=turn,
        requests=len(latencies),
        in_time=int(in_time.sum()),
        refused=int((~np.isin(statuses, ("OK", *GIVEN_UP))).sum()),
        p50_ms=percentile_ms(waited, 50),
        p99_ms=percentile_ms(waited, 99),
        late_p99_ms=percentile_ms(np.concatenate([each.late_s for each in sent]), 99),
        cpu_us=cpu_s / max(1, len(latencies)) * 1e6,
        other_cores=max(0.0, other_cores),
    )


def percentile_ms(values: NDArray[np.float64], percent: float) -> float:
    """Of values that may be infinite, where interpolation is not defined."""
    return float(np.percentile(values, percent, method="higher")) * 1e3 if len(values) else float("nan")


def settle(server: Server) -> None:
    """Wait until the server has done with what its last callers no longer wait for."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while time.monotonic() < deadline:
        before = server.cpu_seconds()
        time.sleep(SETTLE_LOOK_S)
        if server.cpu_seconds() - before < SETTLED_CORES * SETTLE_LOOK_S:
            return
