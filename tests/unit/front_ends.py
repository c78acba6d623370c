"""Front ends on the loop of the test instead of in processes: everything but the process is as it is. And handlers."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence

from offramp_server.transport.interface import CallContext, ListenOptions, Method, Service
from offramp_server.transport.relay.forwarding import Forwarded
from offramp_server.transport.relay.front_end import run_front_end
from offramp_server.transport.relay.transport import RelayTransport

ECHO, WAIT = "/s/echo", "/s/wait"


class Handlers:
    """Echoes, or waits to be cancelled."""

    def __init__(self) -> None:
        self.running = 0

    async def echo(self, request: bytes, context: CallContext) -> bytes:
        return request

    async def wait(self, request: bytes, context: CallContext) -> bytes:
        self.running += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.running -= 1
        raise AssertionError

    def service(self) -> Forwarded:
        """What of a service a transport asks for."""
        known = ((ECHO, self.echo), (WAIT, self.wait))
        return Forwarded(tuple(Method(path, path, "bytes", bytes, False, False, handler) for path, handler in known))


class Here:
    """A front end that runs as a task. To kill it is to close its end of the link."""

    pid = None

    def __init__(self, link: socket.socket, sockets: Sequence[socket.socket]) -> None:
        self.logged: list[tuple[int, str]] = []
        self.task = asyncio.create_task(
            run_front_end(link, sockets, lambda level, form: self.logged.append((level, form)))
        )

    def kill(self) -> None:
        self.task.cancel()

    async def ended(self) -> str:
        await asyncio.wait([self.task])
        return "ended"


def launch_here(link: socket.socket, sockets: Sequence[socket.socket]) -> Here:
    return Here(link.dup(), [each.dup() for each in sockets])


def front_ends_here(services: Iterable[Service], options: ListenOptions) -> RelayTransport:
    return RelayTransport(services, options, 2, (logging.WARNING, "text"), launch_here)
