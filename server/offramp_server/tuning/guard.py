"""The process beside a trial that ends it when it takes too much memory, or when nobody waits for it any more.

A trial may be deep inside a library, and its compilers are processes of their own: none of them would notice that the
server has gone. The guard is of the same process group and ends all of it, itself included.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from offramp_server.machine.parent import die_with
from offramp_server.telemetry.process import descendants, resident_bytes

# On Windows nothing is tried.
if sys.platform != "win32":
    import resource

SIGNAL, EXIT, MEMORY = "signal", "exit", "memory"
_PAUSE_MS = 50
# Looking for new processes means reading all of /proc.
_TURNS_PER_SEARCH = 10
_STDIN = 0
_MOST_LIKELY_TO_BE_KILLED = "1000"


def guarded(replies: int, max_memory: int) -> None:
    """Return in a new process, over which this one watches.

    What ends it is told as a last line, {"ended": SIGNAL | EXIT | MEMORY, "number": ...}, on the descriptor `replies`.
    To be called before anything has started a thread.
    """
    with suppress(PermissionError):
        # Fails for a process that is the first of a session already.
        os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard = os.getpid()
    trial = os.fork()
    if trial == 0:
        die_with(guard)
        _volunteer_for_the_kernel()
        return
    _Guard(trial, replies, max_memory).stand()


class _Guard:
    def __init__(self, trial: int, replies: int, max_memory: int) -> None:
        self._trial = trial
        self._replies = replies
        self._max_memory = max_memory

    def stand(self) -> NoReturn:
        # Asking for nothing, it is told of the other end's closing alone.
        hangup = select.poll()
        hangup.register(_STDIN, 0)
        turn, processes = 0, [self._trial]
        while not hangup.poll(_PAUSE_MS):
            self._look_for_its_end()
            if turn % _TURNS_PER_SEARCH == 0:
                processes = [self._trial, *descendants(self._trial)]
            self._look_at_memory(processes)
            turn += 1
        _end_everything()

    def _look_for_its_end(self) -> None:
        pid, status = os.waitpid(self._trial, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self._tell(SIGNAL if code < 0 else EXIT, abs(code))
            _end_everything()

    def _look_at_memory(self, processes: Sequence[int]) -> None:
        if self._max_memory:
            used = sum(resident_bytes(pid) or 0 for pid in processes)
            if used > self._max_memory:
                self._tell(MEMORY, used)
                _end_everything()

    def _tell(self, what: str, number: int) -> None:
        # The trial may have died in the middle of a line.
        os.write(self._replies, b"\n" + json.dumps({"ended": what, "number": number}).encode() + b"\n")


def _end_everything() -> NoReturn:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _volunteer_for_the_kernel() -> None:
    """If memory runs out before the guard sees it, the kernel is to take this process and not one that serves."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(_MOST_LIKELY_TO_BE_KILLED)
