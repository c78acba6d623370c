"""Sockets that listen, for the address that a server is told."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from offramp_server.errors import ConfigurationError
from offramp_server.transport.unix_socket import OwnPath, bound_to_path, path_of

# Connections that wait to be accepted at a path.
_BACKLOG = 1024
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address that the host has; `unix:` begins a path. Raises ConfigurationError."""
    path = path_of(host)
    if path is not None:
        return [bound_to_path(path, _BACKLOG)]
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ipv4 = any(family == socket.AF_INET for family, *_ in addresses)
        for family, _, _, _, address in dict.fromkeys(addresses):
            # The first one may have taken any port; the others have to be at the same.
            at = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
            try:
                sockets.append(_bound(family, at, ipv4))
            except OSError as error:
                # "localhost" may have an address of a family that this machine does not use.
                if error.errno not in _NO_SUCH_ADDRESS or (address == addresses[-1][4] and not sockets):
                    raise
    except OSError as error:
        close_all(sockets)
        raise ConfigurationError(f"cannot listen on {_shown(host, port)}: {error.strerror}") from error
    return sockets


class SharedAddress:
    """One address for several processes of this server, and for nobody else."""

    def __init__(self, host: str, port: int) -> None:
        """Raises ConfigurationError if somebody has it."""
        # The kernel deals out connections to all that listen at a port; at a path, whoever is first takes one.
        self._dealt_out = hasattr(socket, "SO_REUSEPORT") and path_of(host) is None
        self._reserved = bound_sockets(host, port)
        self._own_path = OwnPath(host)
        if self._dealt_out:
            try:
                for reserved in self._reserved:
                    _reserve(reserved, port)
            except OSError as error:
                close_all(self._reserved)
                raise ConfigurationError(f"cannot listen on {_shown(host, port)}: {error.strerror}") from error

    @property
    def port(self) -> int:
        return port_of(self._reserved)

    def sockets(self) -> list[socket.socket]:
        """For one process, which is to listen once it can take connections: the kernel deals none out to it before.
        Raises OSError."""
        sockets: list[socket.socket] = []
        try:
            sockets.extend(self._again(each) if self._dealt_out else each.dup() for each in self._reserved)
        except OSError:
            close_all(sockets)
            raise
        return sockets

    def _again(self, reserved: socket.socket) -> socket.socket:
        ipv6_only = reserved.family == socket.AF_INET6 and reserved.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return _bound(reserved.family, reserved.getsockname(), bool(ipv6_only), reuse_port=True)

    def leave_path(self) -> None:
        """The next server may have it; what listens there goes on."""
        self._own_path.remove()

    def close(self) -> None:
        self.leave_path()
        close_all(self._reserved)
        self._reserved = []


def port_of(sockets: Sequence[socket.socket]) -> int:
    """0 for a path."""
    return 0 if sockets[0].family == socket.AF_UNIX else int(sockets[0].getsockname()[1])


def close_all(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reserve(bound: socket.socket, port: int) -> None:
    """Keep it while no process listens, for those of this server only, and take no connections. Raises OSError."""
    if port:
        # Of servers that start at once several may have bound it, but only one may listen. Together they would share
        # its connections without anybody noticing.
        bound.listen(1)
    # Needed where connections of an earlier server linger. From now on it would let others bind the port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if port:
        # It listens no longer, and stays bound: as it would not to a port that the kernel has chosen.
        bound.shutdown(socket.SHUT_RDWR)


def _bound(family: int, address: tuple[Any, ...], ipv6_only: bool, reuse_port: bool = False) -> socket.socket:
    """Unless `ipv6_only`, "::" stands for the addresses of IPv4 as well. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(ipv6_only))
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening
