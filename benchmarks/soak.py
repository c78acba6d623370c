"""Mixed traffic against one server for a given time: `python -m benchmarks.soak --seconds 7200 [--attacks]`.

Clients with calls of every kind, strangers that speak no HTTP/2 or stop half way, and with `--attacks` peers that mean
harm; meanwhile a probe calls steadily, and memory, descriptors, threads and the probe's latency are noted. The exit
status is 1 if one of them grows, if a call ends as it should not, or if the server does not come to rest afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.cpu import machine_busy_seconds, tree_memory_bytes, tree_pids
from benchmarks.harness.environments import REPOSITORY_ROOT
from benchmarks.harness.experiment import say
from benchmarks.harness.load import children_cpu_seconds
from benchmarks.harness.machine import Machine, describe_machine
from benchmarks.harness.report import NOISY, QUIET_CORES
from benchmarks.harness.steadiness import Moment, Verdict, judge, thinned
from benchmarks.harness.tables import as_json, table, without_home
from benchmarks.harness.workloads import ONNX_RUNTIME, load_workload
from benchmarks.routes import start
from benchmarks.runtimes.soak_calls import MODEL, OPTIONS, ROUTE, ROUTE_ITEM, SERVICE, check, request
from benchmarks.runtimes.soak_sockets import ATTACKS
from benchmarks.scaling import allow_connections, wide
from benchmarks.servers.offramp import GRPCIO, NATIVE, write_model

RESULTS = REPOSITORY_ROOT / "benchmarks" / "results"
READY = re.compile(r"ready grpc=(\S+) http=(\S+)")
START_TIMEOUT_S = 120.0
# The probe's calls, and what it waits for one before the server counts as gone.
PROBE_EVERY_S, PROBE_TIMEOUT_S = 0.02, 30.0
# After the traffic: connections of those who stopped half way time out.
SETTLE_S = 75.0
# Descriptors and threads more than before the traffic that are none of its doing (a worker's pipe, a pool's thread).
LEFT_OVER = 8
CASCADE = f"""\
kind = "early_exit"

[[stages]]
name = "first"
model = "{MODEL}-item"
threshold = 0.1

[[stages]]
name = "second"
model = "{MODEL}-item"
"""


class Probe:
    """Calls steadily from a thread of its own."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, OPTIONS)
        self._lock = threading.Lock()
        self._latencies_s: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        infer = self._channel.unary_unary(
            f"{SERVICE}ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        while not self._over.wait(PROBE_EVERY_S):
            asked, began = request(ROUTE_ITEM), time.perf_counter()
            try:
                check(asked, infer(asked, timeout=PROBE_TIMEOUT_S))
            except Exception as error:
                said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
                self.failures.append(said)
            with self._lock:
                self._latencies_s.append(time.perf_counter() - began)

    def take(self) -> list[float]:
        """Seconds of the calls since the last time."""
        with self._lock:
            taken, self._latencies_s = self._latencies_s, []
        return taken


@dataclass
class Soak:
    """What happened."""

    before: Moment
    moments: list[Moment] = field(default_factory=list)
    after: Moment | None = None
    # Of the traffic: `KIND END` and how often.
    counts: Mapping[str, int] = field(default_factory=dict)
    wrong: Mapping[str, int] = field(default_factory=dict)
    probe_failures: Sequence[str] = ()
    # Kept busy by anything but server, clients and probe.
    other_cores: float = 0.0

    @property
    def verdicts(self) -> list[Verdict]:
        return judge(self.moments)

    @property
    def faults(self) -> list[str]:
        found = [
            f"{each.figure} grows: {each.growth:+.1f} over the second half, where {each.allowed:.1f} are nothing"
            for each in self.verdicts
            if not each.is_flat
        ]
        found += [f"{count} x {end}" for end, count in self.wrong.items()]
        found += [f"the probe: {failure}" for failure in sorted(set(self.probe_failures))]
        if self.after is not None:
            if self.after.in_flight:
                found.append(f"{self.after.in_flight} requests in flight after the traffic")
            for name in ("descriptors", "threads"):
                was, now = getattr(self.before, name), getattr(self.after, name)
                if now > was + LEFT_OVER:
                    found.append(f"{name} after the traffic: {now}, before it {was}")
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    allow_connections()
    directory = cache_directory("runs", datetime.now(UTC).strftime("%Y%m%dT%H%M%S"))
    machine = describe_machine()
    server = start(repository(directory), directory / "server.log", config(directory, options.mode), options.transport)
    try:
        ready = READY.match(server.wait_for_line("ready grpc=", START_TIMEOUT_S))
        assert ready is not None
        busy, used, began = machine_busy_seconds(), own_cpu_seconds() + server.cpu_seconds(), time.monotonic()
        soak = run(server.pid, ready[1], ready[2], options)
        others = machine_busy_seconds() - busy - (own_cpu_seconds() + server.cpu_seconds() - used)
        soak.other_cores = max(0.0, others) / (time.monotonic() - began)
    finally:
        server.stop()
    command = shlex.join(["python", "-m", "benchmarks.soak", *given])
    name = options.name or ("soak-attacks" if options.attacks else "soak")
    write(to_markdown(command, machine, options, soak), soak, options.output, name)
    return 1 if soak.faults else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    result.add_argument("--seconds", type=float, default=600.0, help="of traffic (default %(default)s)")
    result.add_argument("--every", type=float, help="seconds between samples; a sixtieth of --seconds by default")
    result.add_argument("--clients", type=int, default=6, help="with calls of every kind (default %(default)s)")
    result.add_argument("--strangers", type=int, default=2, help="that stop half way (default %(default)s)")
    result.add_argument("--attacks", action="store_true", help="one attacker of each kind as well, all the time")
    result.add_argument("--transport", choices=[NATIVE, GRPCIO], default=NATIVE, help="default %(default)s")
    result.add_argument("--mode", choices=["process", "in-process"], default="process", help="default %(default)s")
    result.add_argument("--settle", type=float, default=SETTLE_S, help="seconds afterwards (default %(default)s)")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the report (default %(default)s)")
    result.add_argument("--name", help="of the report's files, instead of soak or soak-attacks")
    return result


# The server


def repository(directory: Path) -> Path:
    """Two models that return their input, of any size and of one, and a cascade of the latter."""
    models = directory / "models"
    anything = wide(load_workload(MODEL, ONNX_RUNTIME), ROUTE_ITEM * 4)
    write_model(anything, ONNX_RUNTIME, models / MODEL)
    write_model(load_workload("identity", ONNX_RUNTIME), ONNX_RUNTIME, models / f"{MODEL}-item")
    (models / ROUTE).mkdir()
    (models / ROUTE / "route.toml").write_text(CASCADE)
    return models


def config(directory: Path, mode: str) -> Path:
    path = directory / "config.toml"
    path.write_text(f'[workers]\nmode = "{mode}"\n')
    return path


def moment(pid: int, http: str, at_s: float, latencies_s: Sequence[float]) -> Moment:
    p50, p99 = np.percentile(latencies_s, (50, 99)) * 1e3 if latencies_s else (float("nan"), float("nan"))
    pids = tree_pids(pid)
    descriptors = sum(entries(pid, "fd") for pid in pids)
    threads = sum(entries(pid, "task") for pid in pids)
    memory = tree_memory_bytes(pid) / 2**20
    return Moment(at_s, memory, descriptors, threads, in_flight(http), len(latencies_s), float(p50), float(p99))


def entries(pid: int, what: str) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/{what}").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def in_flight(http: str) -> int:
    """What the server says that it is working on."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=START_TIMEOUT_S) as page:
        [value] = re.findall(r"^offramp_requests_in_flight (\S+)", page.read().decode(), re.MULTILINE)
    return int(float(value))


# The run


def own_cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    return time.process_time() + children_cpu_seconds()


def run(pid: int, target: str, http: str, options: argparse.Namespace) -> Soak:
    every = options.every or max(1.0, options.seconds / 60)
    attackers = len(ATTACKS) if options.attacks else 0
    command = [sys.executable, "-m", "benchmarks.runtimes.soak_traffic", target, str(options.seconds)]
    command += ["--clients", str(options.clients), "--strangers", str(options.strangers), "--attackers", str(attackers)]
    with Probe(target) as probe:
        # The first call of each kind makes what stays.
        time.sleep(every)
        soak = Soak(moment(pid, http, 0.0, probe.take()))
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY_ROOT) as traffic:
            while traffic.poll() is None:
                time.sleep(every)
                if traffic.poll() is None and time.monotonic() - began < options.seconds:
                    soak.moments.append(moment(pid, http, time.monotonic() - began, probe.take()))
                    say(str(soak.moments[-1]))
            said = json.loads(traffic.stdout.read() if traffic.stdout else b"")
        soak.counts, soak.wrong = said["counts"], said["wrong"]
        say("letting the server come to rest")
        time.sleep(options.settle)
        probe.take()
        time.sleep(min(every, 1.0))
        soak.probe_failures = probe.failures
    soak.after = moment(pid, http, time.monotonic() - began, probe.take())
    return soak


# The report


def to_markdown(command: str, machine: Machine, options: argparse.Namespace, soak: Soak) -> str:
    attacks = f", and of each of {len(ATTACKS)} attacks one peer all the time" if options.attacks else ""
    heading = f"""\
# Soak{" under attack" if options.attacks else ""}, {machine.date}

`{command}`

{machine.cpu}, {machine.cores} cores shared by server and clients; {machine.system};
Python {machine.python}. {options.seconds:g} s of mixed traffic from {options.clients} clients and {options.strangers}
strangers{attacks}: {sum(soak.counts.values()):,} calls and connections. Transport {options.transport}, engine
{options.mode}; a probe calls every {PROBE_EVERY_S * 1e3:g} ms. Other processes used {soak.other_cores:.2f} cores.
{NOISY if soak.other_cores > QUIET_CORES else ""}"""
    outcome = "\n".join(f"- {fault}" for fault in soak.faults) or "Nothing grows, and everything ended as it should."
    parts = [heading, f"## Outcome\n\n{outcome}\n", verdict_table(soak.verdicts), moments_table(soak), ends_table(soak)]
    return without_home("\n".join(parts))


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "Too short to say whether anything grows.\n"
    rows = [
        [
            each.figure,
            f"{each.median:,.1f}",
            f"{each.growth:+,.2f}",
            f"{each.allowed:,.1f}",
            "yes" if each.is_flat else "no",
        ]
        for each in verdicts
    ]
    columns = ["over the second half", "median", "growth of a robust line", "no growth up to", "flat"]
    return f"## What grows\n\n{table(columns, rows)}"


def moments_table(soak: Soak) -> str:
    shown = [("before", soak.before), *((f"{each.at_s:,.0f}", each) for each in thinned(soak.moments))]
    if soak.after is not None:
        shown.append(("at rest", soak.after))
    rows = [
        [
            name,
            f"{each.memory_mib:,.1f}",
            str(each.descriptors),
            str(each.threads),
            str(each.in_flight),
            f"{each.probes:,}",
            f"{each.p50_ms:.2f}",
            f"{each.p99_ms:.2f}",
        ]
        for name, each in shown
    ]
    columns = ["s", "memory MiB", "descriptors", "threads", "in flight", "probes", "p50 ms", "p99 ms"]
    return f"## Over time\n\n{table(columns, rows)}"


def ends_table(soak: Soak) -> str:
    rows = [
        [*key.split(" ", 1), f"{count:,}", "no" if key in soak.wrong else "yes"]
        for key, count in sorted(soak.counts.items())
    ]
    return f"## How it ended\n\n{table(['what', 'end', 'times', 'as it should'], rows)}"


def write(report: str, soak: Soak, directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(report)
    (directory / f"{name}.json").write_text(as_json(asdict(soak)))
    print(report)
    say(f"written to {directory / name}.md and .json")


if __name__ == "__main__":
    sys.exit(main())
