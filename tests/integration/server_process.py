"""A real `offramp serve` in a process of its own, on free ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from eventually import PATIENCE
from offramp_server.telemetry.process import descendants, resident_bytes

READY = re.compile(r"ready grpc=(\S+) http=(\S+) models=(\d+)")


@dataclass
class ServerProcess:
    """The process and what its ready line said."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    models: int
    log: IO[str]

    def worker_pids(self) -> list[int]:
        """The worker processes, those that stand by included, the oldest first."""
        workers = [pid for pid in descendants(self.process.pid) if "process_main" in _command(pid)]
        return sorted(workers, key=_started)

    def front_end_pids(self) -> list[int]:
        """The processes that carry calls for it."""
        return [pid for pid in descendants(self.process.pid) if "transport.relay" in _command(pid)]

    @contextmanager
    def computing_nothing(self) -> Iterator[None]:
        """Hold the workers still until the block ends: whatever is asked meanwhile waits, expires or is cancelled.

        A model that is merely slow may have answered before a test on a busy machine has done its next step.
        """
        held = self.worker_pids()
        assert held, "this server has no worker processes that could be held"
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            while not all(_still(pid) for pid in held):
                time.sleep(0.001)
            yield
        finally:
            for pid in held:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def resident_bytes(self) -> int:
        """Of the front end and its workers."""
        return sum(resident_bytes(pid) or 0 for pid in (self.process.pid, *self.worker_pids()))

    def logged(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(
    repository: Path, arguments: Sequence[str] = (), environment: dict[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Start, wait for the ready line, and make sure that it ends."""
    command = [sys.executable, "-m", "offramp_server", "serve", f"--model-repository={repository}"]
    command += ["--grpc-port=0", "--http-port=0", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                server = _await_ready(process, process.stdout, log)
                yield server
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait(PATIENCE)


def _await_ready(process: subprocess.Popen[str], output: IO[str], log: IO[str]) -> ServerProcess:
    match = READY.match(output.readline())
    if match is None:
        log.seek(0)
        raise AssertionError(f"the server did not become ready (exit code {process.wait(PATIENCE)}):\n{log.read()}")
    return ServerProcess(process, match[1], match[2], int(match[3]), log)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _started(pid: int) -> int:
    """Clock ticks since the machine was started, 0 if the process is gone. Process ids begin again some day."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _still(pid: int) -> bool:
    """Whether the process is stopped, or gone."""
    fields = _stat(pid)
    return not fields or fields[0] in "TZX"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
