"""What a run asks of every server: make it ready to start, start it, stop it, say what it is."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.certificate import Certificate
from benchmarks.harness.environments import REPOSITORY_ROOT, Environment, NotRunnableError
from benchmarks.harness.processes import ServerProcess
from benchmarks.harness.verify import HTTPS, wait_until_ready
from benchmarks.harness.workloads import Workload

READY_LINE = "ready grpc="
THREADS_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Launch:
    """How to start a server. `target` is HOST:PORT, or None if a line `ready grpc=HOST:PORT ...` will tell it."""

    command: Sequence[str | Path]
    target: str | None
    environment: Mapping[str, str] = field(default_factory=dict)


class Server(ABC):
    """A server of the Open Inference Protocol over gRPC."""

    name: str
    note: str = ""
    start_timeout_s = 120.0
    # Of what computes in it, for all libraries; None: it chooses by itself.
    compute_threads: int | None = 1
    # Whether it is there to be compared with and runs no model.
    is_control = False
    # What runs the models in it.
    engine = ""

    def __init__(self, tls: Certificate | None = None) -> None:
        """With `tls`, which not every server can, it speaks that and nothing else."""
        self.tls = tls
        self._process: ServerProcess | None = None
        self._target = ""

    @abstractmethod
    def install(self) -> None:
        """Make everything that starting needs. Raises NotRunnableError if it cannot be had."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions that matter, by package; after `install`."""

    @abstractmethod
    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        """Write what the server reads into `directory`, which is empty, and say how to start it."""

    def serves(self, workload: Workload) -> bool:
        """Tell whether this server takes part in `workload`."""
        return True

    def engines(self, workloads: Sequence[Workload]) -> str:
        """Return what the running server says it runs the models with, if it can choose; else nothing."""
        return ""

    @property
    def target(self) -> str:
        """HOST:PORT of the gRPC service, behind https:// if it speaks TLS; after `start`."""
        return self._target

    def start(self, workloads: Sequence[Workload], directory: Path) -> None:
        """Start the server with those `workloads` it serves and wait until all are ready.

        Raises NotRunnableError with the last line of its log if it does not come up.
        """
        served = by_model([workload for workload in workloads if self.serves(workload)])
        directory.mkdir(parents=True, exist_ok=True)
        launch = self.prepare(served, directory)
        environment = {**base_environment(self.compute_threads), **launch.environment}
        process = self._process = ServerProcess(launch.command, environment, directory / "server.log")
        deadline = time.monotonic() + self.start_timeout_s
        address = launch.target or announced_target(process, self.start_timeout_s)
        self._target = address if self.tls is None else f"{HTTPS}{address}"
        models = dict.fromkeys(workload.model for workload in served)
        wait_until_ready(self._target, models, lambda: process.check(deadline))

    def stop(self) -> None:
        """Stop the server and everything it started; harmless if it never ran."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server's whole process tree has used, in seconds."""
        return self._running().cpu_seconds()

    def cpu_seconds_by_process(self) -> dict[int, float]:
        """Return the same for each process that is there now, by its id."""
        return self._running().cpu_seconds_by_process()

    def memory_bytes(self) -> int:
        """Return the memory of the server's whole process tree; pages that its processes share count once."""
        return self._running().memory_bytes()

    def _running(self) -> ServerProcess:
        if self._process is None:
            raise NotRunnableError(f"{self.name} is not running")
        return self._process


def base_environment(compute_threads: int | None = 1) -> dict[str, str]:
    """Return the environment that every server gets: this one's, the repository importable, so many compute threads."""
    # A checkout that is no installed one may be what is measured.
    importable = os.pathsep.join(filter(None, [str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": importable, "PYTHONUNBUFFERED": "1"}
    variables.pop(THREADS_VARIABLE, None)
    return variables if compute_threads is None else {**variables, THREADS_VARIABLE: str(compute_threads)}


def by_model(workloads: Sequence[Workload]) -> list[Workload]:
    """One workload for each model."""
    return list({workload.model: workload for workload in workloads}.values())


def announced_target(process: ServerProcess, timeout_s: float) -> str:
    line = process.wait_for_line(READY_LINE, timeout_s)
    return line.removeprefix(READY_LINE).split()[0]


def require(environment: Environment, module: str) -> None:
    """Raise NotRunnableError unless `environment` has `module`."""
    if not list(environment.site_packages().glob(f"{module}*")):
        raise NotRunnableError(f"package {module} is not in {environment.root}")
