"""One connection of the asyncio channel: a socket, and the session on it."""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import Any, Protocol, cast

from offramp_common.http2.stream import Payload
from offramp_common.write_parts import write_parts

from offramp_client._native.addresses import Address
from offramp_client._native.session import Lost, Owner, Session
from offramp_client._native.settings import Settings

# Larger writes are handed over in parts; below that it is cheaper to join them, above all for TLS.
_JOINED_BYTES = 64 * 1024
# Between two addresses of one name (RFC 8305, "Happy Eyeballs"). Seconds.
_NEXT_ADDRESS = 0.25
_NO_ALPN = "the server did not agree on HTTP/2 in its TLS handshake"


class Host(Owner, Protocol):
    """The channel."""

    def on_connected(self, connection: Connection) -> None:
        """Its server has not said anything yet."""
        ...

    def on_room(self) -> None:
        """There may be some for calls that wait."""
        ...

    def on_lost(self, connection: Connection, reason: str) -> None: ...


class Connection(asyncio.Protocol):
    """Feeds the session what comes, and writes once in a turn of the loop what it has to say."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.session = Session(host, settings, self._on_output)
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._settings = settings
        self._transport: asyncio.Transport | None = None
        # Output waits until what came has been read to its end.
        self._receiving = False
        self._paused = False
        # Why it is being closed, which `connection_lost` is not told.
        self._reason = ""
        self._looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        encryption = transport.get_extra_info("ssl_object")
        if encryption is not None and encryption.selected_alpn_protocol() != "h2":
            self.abort(_NO_ALPN)
            return
        self._host.on_connected(self)
        self._look()

    def data_received(self, data: bytes) -> None:
        self._receiving = True
        try:
            self.session.received(data)
            self._host.on_room()
        except Lost as lost:
            self._end(str(lost))
            return
        finally:
            self._receiving = False
        self.flush()
        if self.session.is_done:
            self._end("the server takes no more calls")

    def eof_received(self) -> None:
        self._end("the connection was lost: the server closed it")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._looking is not None:
            self._looking.cancel()
        self._host.on_lost(self, self._reason or f"the connection was lost: {error or 'the server closed it'}")

    def pause_writing(self) -> None:
        self._paused = True
        self.session.engine.sender.pause()

    def resume_writing(self) -> None:
        self._paused = False
        self.session.engine.sender.resume()
        self._host.on_room()

    @property
    def is_refused(self) -> bool:
        """It speaks something else than HTTP/2."""
        return self._reason == _NO_ALPN

    def _on_output(self) -> None:
        if not self._receiving:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Until there is nothing more, or the socket has enough."""
        transport, sender = self._transport, self.session.engine.sender
        while transport is not None and not transport.is_closing():
            out = sender.take_output()
            if not out:
                break
            self._write(transport, out)
            if self._paused:
                # Reading goes on, or two ends that both have much to say would wait for each other. What only answers
                # what the server sends has to have a bound, though.
                if transport.get_write_buffer_size() > self._settings.max_unread_bytes:
                    self.abort("the server asks for answers, and does not read them")
                break
            sender.resume()

    def _write(self, transport: asyncio.Transport, out: list[Payload]) -> None:
        if len(out) == 1:
            transport.write(out[0])
        elif self._settings.tls is not None or sum(map(len, out)) <= _JOINED_BYTES:
            # Each part would be a record of TLS by itself.
            transport.write(b"".join(out))
        else:
            write_parts(transport, out)

    def _look(self) -> None:
        now = self._settings.clock()
        try:
            again = self.session.look(now)
        except Lost as lost:
            self.abort(str(lost))
            return
        if again < math.inf:
            self._looking = self._loop.call_later(again - now, self._look)

    def demand_greeting(self) -> None:
        """Now it is late."""
        if not self.session.is_ready:
            self.abort(f"the server has said nothing for {self._settings.connect_timeout:g} s")

    def close(self, reason: str) -> None:
        """After what has been said is out."""
        self.flush()
        self._reason = self._reason or reason
        transport = self._transport
        if transport is None:
            return
        if self._settings.tls is not None and not transport.get_write_buffer_size():
            # It would wait for the server to say goodbye as well, and not all do.
            transport.abort()
        else:
            transport.close()

    def _end(self, reason: str) -> None:
        """Say what can be said, and do not wait for more: a server that reads nothing would keep the calls waiting."""
        self.close(reason)
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._transport.abort()

    def abort(self, reason: str) -> None:
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()


async def connected(host: Host, settings: Settings) -> Connection:
    """To the first address that takes it. Raises OSError with what each of them said."""
    failures: list[str] = []
    for address in settings.addresses:
        try:
            connection = await _connected_to(address, host, settings)
        except ssl.SSLCertVerificationError as error:
            failures.append(f"{address}: the server's certificate was not accepted: {error.verify_message}")
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        else:
            if not connection.is_refused:
                return connection
            failures.append(f"{address}: {_NO_ALPN}")
    raise OSError("; ".join(failures))


async def _connected_to(address: Address, host: Host, settings: Settings) -> Connection:
    loop = asyncio.get_running_loop()
    connection = Connection(host, settings)
    name = (settings.server_name or address.host or "localhost") if settings.tls is not None else None
    if address.path:
        await loop.create_unix_connection(lambda: connection, address.path, ssl=settings.tls, server_hostname=name)
        return connection
    # uvloop has no such thing: it tries one after the other.
    racing: dict[str, Any] = {"happy_eyeballs_delay": _NEXT_ADDRESS} if isinstance(loop, asyncio.BaseEventLoop) else {}
    await loop.create_connection(
        lambda: connection, address.host, address.port, ssl=settings.tls, server_hostname=name, **racing
    )
    return connection
