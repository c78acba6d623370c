"""Services on a port by means of our own HTTP/2: docs/adr/0016 says why, and what would end it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from offramp_server.errors import ConfigurationError
from offramp_server.transport.interface import HasMethods, ListenOptions, TlsMaterial
from offramp_server.transport.listening import bound_sockets, port_of
from offramp_server.transport.native.connection import Connection, Shared
from offramp_server.transport.native.limits import NativeLimits
from offramp_server.transport.unix_socket import OwnPath

# Connections that wait to be accepted.
BACKLOG = 1024
# How often connections are looked at for those that do nothing. Seconds.
_LOOK_EVERY = 1.0
# What calls that are given up have to say so. Seconds.
_LAST_WORDS = 1.0

_logger = logging.getLogger("offramp.transport")


class NativeTransport:
    """Build and use it on the event loop that serves."""

    def __init__(
        self,
        services: Iterable[HasMethods],
        options: ListenOptions,
        limits: NativeLimits | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """`sockets` are bound already, by who takes care of the address, instead of to what `options` say."""
        limits = limits or NativeLimits()
        http2 = replace(
            limits.http2,
            max_header_list_bytes=options.max_metadata_bytes,
            min_ping_interval=options.min_ping_interval,
        )
        limits = replace(limits, http2=http2)
        methods = {method.path: method for service in services for method in service.methods}
        self._options = options
        self._sockets = sockets
        self._shared = Shared(methods, limits, options.max_message_bytes)
        self._servers: list[asyncio.Server] = []
        self._own_path: OwnPath | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        return len(self._shared.connections)

    async def start(self) -> int:
        context = None if self._options.tls is None else _tls_context(self._options.tls)
        self._shared.tls = context is not None
        loop = asyncio.get_running_loop()
        sockets = self._sockets or bound_sockets(self._options.host, self._options.port)
        if not self._sockets:
            self._own_path = OwnPath(self._options.host)
        for listening in sockets:
            server = await loop.create_server(
                lambda: Connection(self._shared),
                sock=listening,
                ssl=context,
                backlog=BACKLOG,
                ssl_handshake_timeout=self._shared.limits.greeting_timeout if context else None,
            )
            self._servers.append(server)
        self._looking = loop.create_task(self._look())
        return port_of(sockets)

    async def stop(self, grace: float) -> None:
        shared = self._shared
        shared.draining = True
        if self._own_path is not None:
            self._own_path.remove()
        for server in self._servers:
            server.close()
        for connection in list(shared.connections):
            connection.drain()
        if not await self._gone_within(grace):
            for connection in list(shared.connections):
                connection.shut_down()
            await self._gone_within(_LAST_WORDS)
        for connection in list(shared.connections):
            connection.abort()
        if self._looking is not None:
            self._looking.cancel()
        self._servers.clear()

    async def _gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._shared.wait_until_gone()
        except TimeoutError:
            return False
        return True

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for connection in list(self._shared.connections):
                try:
                    connection.look(loop.time())
                except Exception:
                    _logger.exception("%s could not be looked after", connection.peer)


def _tls_context(tls: TlsMaterial) -> ssl.SSLContext:
    """Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        # The ssl module reads them from files only.
        with TemporaryDirectory(prefix="offramp-tls-") as folder:
            chain, key = Path(folder, "chain.pem"), Path(folder, "key.pem")
            chain.write_bytes(tls.certificate_chain)
            key.touch(mode=0o600)
            key.write_bytes(tls.private_key)
            context.load_cert_chain(chain, key)
            if tls.client_ca is not None:
                authorities = Path(folder, "ca.pem")
                authorities.write_bytes(tls.client_ca)
                context.load_verify_locations(cafile=authorities)
                context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise ConfigurationError(f"cannot use the certificate: {error.reason}") from error
    return context
