"""Control: the models with no server around them, in a process that computes on command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness.environments import NotRunnableError, project_environment
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import base_environment, by_model
from benchmarks.servers.peer import ENGINE_VERSIONS

# glibc gives freed memory back to the system by default, and a batch of activations is then faulted in again on every
# call: up to a third of the time. The limit that servers are held against should not contain that.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}


@dataclass(frozen=True)
class Timing:
    """The wall time of each call and the CPU time of all of them, in seconds."""

    seconds: Sequence[float]
    cpu_s: float


class BareCompute:
    """Times the workloads' engine with one thread, whole batches back to back."""

    name = "bare compute"

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._engine = ""

    @property
    def note(self) -> str:
        return f"{self._engine} in a loop, one thread, batches of min(c, 16), malloc keeps memory; times are of a batch"

    def versions(self) -> dict[str, str]:
        """Return the engine's version; after `start`."""
        return project_environment().versions(ENGINE_VERSIONS[self._engine])

    def start(self, workloads: Sequence[Workload]) -> None:
        """Load the programs. Raises NotRunnableError if that fails."""
        self._engine = workloads[0].engine
        files = [workload.program for workload in by_model(workloads)]
        self._process = subprocess.Popen(
            [project_environment().python, "-m", "benchmarks.runtimes.bare_compute", *files],
            env={**base_environment(), **KEEP_FREED_MEMORY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def time_calls(self, workload: Workload, batch: int, duration_s: float) -> Timing:
        """Run batches of `batch` items for `duration_s` seconds."""
        if self._process is None or self._process.stdin is None:
            raise NotRunnableError("the compute process is not running")
        self._process.stdin.write(f"{workload.model} {batch} {duration_s}\n")
        self._process.stdin.flush()
        return Timing(**json.loads(self._answer()))

    def stop(self) -> None:
        """End the process; harmless if it never ran."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _answer(self) -> str:
        if self._process is None or self._process.stdout is None:
            raise NotRunnableError("the compute process is not running")
        line = self._process.stdout.readline()
        if not line:
            raise NotRunnableError("the compute process has ended; its last words are on standard error")
        return line
