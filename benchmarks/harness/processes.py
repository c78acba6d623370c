"""Server processes: started in a session of their own, logged to a file, stopped with everything they started."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness.cpu import tree_cpu_seconds, tree_memory_bytes, tree_pids, tree_stats
from benchmarks.harness.environments import NotRunnableError

STOP_TIMEOUT_S = 20.0
POLL_S = 0.1


class ServerProcess:
    """A running server.

    Raises NotRunnableError from `wait_for_line` if it ends or stays silent for too long.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        return tree_cpu_seconds(self._process.pid)

    def cpu_seconds_by_process(self) -> dict[int, float]:
        return {stat.pid: stat.cpu_s for stat in tree_stats(self._process.pid)}

    def memory_bytes(self) -> int:
        return tree_memory_bytes(self._process.pid)

    def wait_for_line(self, prefix: str, timeout_s: float) -> str:
        """Return the first line of output that starts with `prefix`."""
        deadline = time.monotonic() + timeout_s
        while True:
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith(prefix):
                    return line
            self.check(deadline)
            time.sleep(POLL_S)

    def check(self, deadline: float) -> None:
        """Raise NotRunnableError if the process has ended or `deadline` (time.monotonic) has passed."""
        status = self._process.poll()
        if status is not None:
            raise NotRunnableError(f"ended with status {status}: {self._last_words()} (whole log: {self.log})")
        if time.monotonic() > deadline:
            raise NotRunnableError(f"not ready in time: {self._last_words()} (whole log: {self.log})")

    def stop(self) -> None:
        """Ask the server to end; kill whatever of it is left after a grace period."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in tree_pids(self._process.pid):
            kill(pid)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def kill(pid: int) -> None:
    """Kill a process that need not be a child of this one, and wait until it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], STOP_TIMEOUT_S)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback interface that are free now, for servers that cannot choose one themselves."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
