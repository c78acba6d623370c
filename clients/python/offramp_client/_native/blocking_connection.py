"""One connection of the blocking channel: a socket that never blocks, and the session on it."""

from __future__ import annotations

import math
import socket
import ssl
from contextlib import suppress
from typing import TypeAlias

from offramp_client._native.addresses import Address
from offramp_client._native.session import Lost, Owner, Session
from offramp_client._native.settings import Settings

_READ_BYTES = 64 * 1024
# The socket cannot go on now: try again when there is something to read, or room to write.
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NO_ALPN = "the server did not agree on HTTP/2 in its TLS handshake"

Socket: TypeAlias = socket.socket


class Connection:
    """Used by one thread at a time."""

    def __init__(self, opened: Socket, owner: Owner, settings: Settings) -> None:
        self.socket = opened
        self.session = Session(owner, settings, _nothing)
        self._settings = settings
        self._greet_by = settings.clock() + settings.connect_timeout
        # What the socket has not taken yet.
        self._unsent = memoryview(b"")

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def read(self) -> None:
        """What has come, if anything. Raises Lost."""
        while True:
            try:
                data = self.socket.recv(_READ_BYTES)
            except _LATER:
                return
            except OSError as error:
                raise Lost(f"the connection was lost: {error.strerror or error}") from error
            if not data:
                raise Lost("the connection was lost: the server closed it")
            self.session.received(data)
            # More than that is noticed by who waits for the socket; what TLS has read already is not.
            if not (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
                return

    def flush(self) -> None:
        """Until there is nothing more to say, or the socket has enough. Raises Lost."""
        sender = self.session.engine.sender
        while True:
            if not self._unsent:
                out = sender.take_output()
                if not out:
                    return
                self._unsent = memoryview(out[0] if len(out) == 1 else b"".join(out))
            # What TLS has not taken has to be offered again as it was.
            self._unsent = self._unsent[self._send(self._unsent) :]
            if self._unsent:
                sender.pause()
                return
            sender.resume()

    def _send(self, data: memoryview) -> int:
        try:
            return self.socket.send(data)
        except _LATER:
            return 0
        except OSError as error:
            raise Lost(f"the connection was lost: {error.strerror or error}") from error

    def is_late(self, now: float) -> bool:
        """Its server should have been heard by now."""
        return self.session.is_late(now) or (now >= self._greet_by and not self.session.is_ready)

    def look(self, now: float) -> float:
        """When to look again. Raises Lost for a server that is silent, or reads nothing of what it asks for."""
        if self._unsent and self.session.engine.sender.waiting_bytes > self._settings.max_unread_bytes:
            raise Lost("the server asks for answers, and does not read them")
        again = self.session.look(now)
        if self.session.is_ready:
            return again
        if now >= self._greet_by:
            raise Lost(f"the server has said nothing for {self._settings.connect_timeout:g} s")
        return min(again, self._greet_by)

    def close(self) -> None:
        """After what can still be said without waiting."""
        with suppress(Lost):
            self.flush()
        self.socket.close()


def _nothing() -> None:
    """Whoever makes output flushes it."""


def opened(settings: Settings) -> Socket:
    """A socket that does not block, connected to the first address that takes it. Raises OSError with what each of
    them said."""
    failures: list[str] = []
    until = settings.clock() + settings.connect_timeout
    for address in settings.addresses:
        try:
            return _opened(address, settings, until)
        except ssl.SSLCertVerificationError as error:
            failures.append(f"{address}: the server's certificate was not accepted: {error.verify_message}")
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {getattr(error, 'strerror', None) or error}")
    raise OSError("; ".join(failures))


def _opened(address: Address, settings: Settings, until: float) -> Socket:
    made = _connected(address, _left(settings, until))
    try:
        if settings.tls is not None:
            made.settimeout(_left(settings, until))
            name = settings.server_name or address.host or "localhost"
            made = encrypted = settings.tls.wrap_socket(made, server_hostname=name)
            if encrypted.selected_alpn_protocol() != "h2":
                raise OSError(_NO_ALPN)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _connected(address: Address, timeout: float) -> Socket:
    if not address.path:
        made = socket.create_connection((address.host, address.port), timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(timeout)
        made.connect(address.path)
    except BaseException:
        made.close()
        raise
    return made


def _left(settings: Settings, until: float) -> float:
    return max(until - settings.clock(), 1e-3) if until < math.inf else math.inf
