"""Front ends as processes of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

_STDERR = 2
_KILL_GRACE_SECONDS = 5.0

_logger = logging.getLogger("offramp.transport")


class Started(Protocol):
    """A front end that runs somewhere."""

    @property
    def pid(self) -> int | None:
        """None: it is no process of its own."""
        ...

    def kill(self) -> None: ...

    async def ended(self) -> str:
        """Make sure that it has ended, and say how it did."""
        ...


class Launch(Protocol):
    def __call__(self, link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
        """Start a front end with its end of the link and what it listens on; the caller closes both afterwards. Raises
        OSError."""
        ...


class FrontEndProcess:
    """One that was started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    async def ended(self) -> str:
        self._process.kill()
        try:
            code = await asyncio.to_thread(self._process.wait, _KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _logger.error("front end (process %s) does not end", self._process.pid)
            return "stuck"
        return f"signal_{-code}" if code < 0 else f"exit_{code}"


def launch_process(link: socket.socket, sockets: Sequence[socket.socket]) -> FrontEndProcess:
    """Raises OSError."""
    command = [sys.executable, "-m", "offramp_server.transport.relay.main", f"--parent={os.getpid()}"]
    command += [f"--link={link.fileno()}", *(f"--listen={each.fileno()}" for each in sockets)]
    # Standard output is the server's own: its ready line must stay alone there. A process group of its own keeps the
    # terminal's signals away, since the server drains before its front ends end.
    return FrontEndProcess(
        subprocess.Popen(
            command,
            pass_fds=(link.fileno(), *(each.fileno() for each in sockets)),
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            process_group=0,
        )
    )
