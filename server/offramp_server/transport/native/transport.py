"""Services on a port by means of our own HTTP/2: docs/adr/0016 says why, and what would end it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offramp_server.errors import ConfigurationError
from offramp_server.transport.interface import ListenOptions, Service, TlsMaterial
from offramp_server.transport.native.connection import Connection, Shared
from offramp_server.transport.native.limits import NativeLimits

_UNIX = "unix:"
_BACKLOG = 1024
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# How often connections are looked at for those that do nothing. Seconds.
_LOOK_EVERY = 1.0
# What calls that are given up have to say so. Seconds.
_LAST_WORDS = 1.0

_logger = logging.getLogger("offramp.transport")


class NativeTransport:
    """Build and use it on the event loop that serves."""

    def __init__(self, services: Iterable[Service], options: ListenOptions, limits: NativeLimits | None = None) -> None:
        limits = limits or NativeLimits()
        limits = replace(limits, http2=replace(limits.http2, max_header_list_bytes=options.max_metadata_bytes))
        methods = {method.path: method for service in services for method in service.methods}
        self._options = options
        self._shared = Shared(methods, limits, options.max_message_bytes)
        self._servers: list[asyncio.Server] = []
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> int:
        context = None if self._options.tls is None else _tls_context(self._options.tls)
        self._shared.tls = context is not None
        loop = asyncio.get_running_loop()
        sockets = _listening(self._options)
        for listening in sockets:
            server = await loop.create_server(
                lambda: Connection(self._shared),
                sock=listening,
                ssl=context,
                backlog=_BACKLOG,
                ssl_handshake_timeout=self._shared.limits.greeting_timeout if context else None,
            )
            self._servers.append(server)
        self._looking = loop.create_task(self._look())
        return int(sockets[0].getsockname()[1]) if sockets[0].family != socket.AF_UNIX else 0

    async def stop(self, grace: float) -> None:
        shared = self._shared
        shared.draining = True
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
        if self._servers:
            _remove_path(self._options.host)
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


def _listening(options: ListenOptions) -> list[socket.socket]:
    """A socket for each address that the host has. Raises ConfigurationError."""
    if options.host.startswith(_UNIX):
        return [_listening_on_path(options.host.removeprefix(_UNIX))]
    shown = f"[{options.host}]:{options.port}" if ":" in options.host else f"{options.host}:{options.port}"
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ipv4 = any(family == socket.AF_INET for family, *_ in addresses)
        for family, _, _, _, address in dict.fromkeys(addresses):
            # The first one may have taken any port; the others have to be at the same.
            port = sockets[0].getsockname()[1] if sockets else options.port
            try:
                sockets.append(_bound(family, (address[0], port, *address[2:]), both=not ipv4))
            except OSError as error:
                # "localhost" may have an address of a family that this machine does not use.
                if error.errno not in _NO_SUCH_ADDRESS or (address == addresses[-1][4] and not sockets):
                    raise
    except OSError as error:
        for each in sockets:
            each.close()
        raise ConfigurationError(f"cannot listen on {shown}: {error.strerror}") from error
    return sockets


def _bound(family: int, address: tuple[Any, ...], both: bool) -> socket.socket:
    """`both`: "::" stands for the addresses of IPv4 as well. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def _listening_on_path(path: str) -> socket.socket:
    """Raises ConfigurationError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"cannot listen on unix:{path}: {error.strerror}") from error
    return listening


def _remove_path(host: str) -> None:
    if host.startswith(_UNIX):
        with suppress(OSError):
            Path(host.removeprefix(_UNIX)).unlink()


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
