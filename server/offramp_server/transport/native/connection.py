"""One client: its socket, the HTTP/2 on it, and the calls in that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, StreamFailed
from offramp_common.http2.hpack import HuffmanCodes
from offramp_common.http2.server import ServerEngine
from offramp_common.http2.stream import Payload, Receiver, Stream
from offramp_common.write_parts import write_parts

from offramp_server.transport.interface import CallFailed, Code, Method
from offramp_server.transport.native.calls import Call
from offramp_server.transport.native.limits import Memory, NativeLimits
from offramp_server.transport.native.metadata import Head, failure_only, http_only, read_head
from offramp_server.transport.native.refusals import Refusal

_logger = logging.getLogger("offramp.transport")

_ALIVE, _DRAIN = b"alive?\0\0", b"drained\0"
# Larger writes are handed over in parts; below that it is cheaper to join them, above all for TLS.
_JOINED_BYTES = 64 * 1024
# What a client may make the loop do at a time before others have their turn. Seconds.
_LONG_TURN = 0.005
_NOT_HTTP2 = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks gRPC, which is HTTP/2.\n"
)


class Shared:
    """What all connections of a transport have in common."""

    def __init__(self, methods: Mapping[str, Method], limits: NativeLimits, max_message_bytes: int) -> None:
        self.methods = methods
        self.limits = limits
        self.max_message_bytes = max_message_bytes
        self.codes = HuffmanCodes()
        self.memory = Memory(limits.max_buffered_bytes)
        self.connections: set[Connection] = set()
        # With TLS a client has to have asked for HTTP/2.
        self.tls = False
        # New connections come too late.
        self.draining = False
        self._gone = asyncio.Event()

    async def wait_until_gone(self) -> None:
        """All connections are."""
        while self.connections:
            self._gone.clear()
            await self._gone.wait()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._gone.set()


class Connection(asyncio.Protocol):
    """Feeds the engine what comes, and writes once in a turn of the loop what it has to say."""

    def __init__(self, shared: Shared) -> None:
        self.loop = asyncio.get_running_loop()
        self.engine: ServerEngine[Head] = ServerEngine(
            self, read_head, shared.limits.http2, shared.codes, self._on_output, self.loop.time
        )
        self.memory = Memory(shared.limits.max_buffered_bytes_of_one, shared.memory)
        self.max_message_bytes = shared.max_message_bytes
        self.peer = ""
        self.identity: str | None = None
        self.running = 0
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        # Output waits until what came has been read to its end.
        self._receiving = False
        self._paused = False
        self._draining = False
        # Nothing more is said; it is the client's turn to close.
        self._leaving = False
        self._heard_at = self._since = self.loop.time()
        self._asked_at: float | None = None
        # Since when the socket has not taken anything of so many bytes that wait for it.
        self._stuck_bytes, self._stuck_since = 0, self._since
        # By stream of which something could move: how much had, and since when it is that.
        self._stuck_streams: dict[int, tuple[int, float]] = {}

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._heard_at = self._since = self.loop.time()
        self._shared.connections.add(self)
        self.peer = _peer(transport)
        if self._shared.tls:
            self.identity = _common_name(transport.get_extra_info("peercert"))
            if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                self._abort("a client that did not ask for HTTP/2 in its TLS handshake")
                return
        if self._shared.draining:
            self._abort("the server is shutting down")
        elif len(self._shared.connections) > self._shared.limits.max_connections:
            self._abort("too many connections")

    def data_received(self, data: bytes) -> None:
        began = time.perf_counter()
        self._heard_at, self._asked_at = self.loop.time(), None
        if self._leaving:
            return
        self._receiving = True
        try:
            self.engine.receive(data)
        except ConnectionFailed as failure:
            self._lose(failure, data)
            return
        finally:
            self._receiving = False
        self._finish_turn()
        if time.perf_counter() - began > _LONG_TURN and self._transport is not None and not self._paused:
            # uvloop reads on from a socket as long as there is anything; others shall have their turn first.
            self._transport.pause_reading()
            self.loop.call_soon(self._read_on)

    def connection_lost(self, error: Exception | None) -> None:
        self._shared.forget(self)
        self._transport = None
        self.engine.close()

    def pause_writing(self) -> None:
        # A client that does not read what it is told is not listened to either.
        self._paused = True
        self.engine.sender.pause()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._read_on()
        if self._transport is not None and not self._transport.is_closing():
            self.engine.sender.resume()

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self._paused:
            self._transport.resume_reading()

    def _on_output(self) -> None:
        if not self._receiving:
            self.loop.call_soon(self._finish_turn)

    def _finish_turn(self) -> None:
        self._flush()
        if self._draining:
            self._leave_if_drained()

    def _flush(self) -> None:
        """Until there is nothing more, or the socket has enough."""
        transport, sender = self._transport, self.engine.sender
        while transport is not None and not (transport.is_closing() or self._leaving):
            out = sender.take_output()
            if not out:
                break
            self._write(transport, out)
            if self._paused:
                break
            sender.resume()

    def _write(self, transport: asyncio.Transport, out: list[Payload]) -> None:
        if len(out) == 1:
            transport.write(out[0])
        elif self._shared.tls or sum(map(len, out)) <= _JOINED_BYTES:
            # Each part would be a record of TLS by itself.
            transport.write(b"".join(out))
        else:
            write_parts(transport, out)

    def _lose(self, failure: ConnectionFailed, data: bytes) -> None:
        if not self.engine.greeted and failure.code is ErrorCode.PROTOCOL_ERROR and b"HTTP/1." in data[:2048]:
            self.engine.sender.take_output()
            self.engine.sender.write(_NOT_HTTP2)
        _logger.info("%s is disconnected: %s", self.peer, failure)
        self.close()

    def _abort(self, why: str) -> None:
        _logger.info("%s is disconnected: %s", self.peer, why)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """After what has been said is out."""
        self._flush()
        if self._transport is not None:
            # Not reading what still comes: the calls are over for this side.
            self._transport.close()

    # What the engine tells

    def on_stream(self, stream: Stream, head: Head) -> Receiver | None:
        if self._draining:
            # Not looked at: the client may safely make the call again elsewhere, and most do so by themselves.
            raise StreamFailed(ErrorCode.REFUSED_STREAM, "the server is shutting down")
        if head.http_status != 200:
            self.engine.end(stream, http_only(head.http_status))
            return None
        if head.failure is not None:
            return Refusal(self.loop, self.engine, stream, head.failure)
        method = self._shared.methods.get(head.path)
        if method is None:
            said = CallFailed(Code.UNIMPLEMENTED, f"there is no method {head.path[:200]}")
            return Refusal(self.loop, self.engine, stream, said)
        limits = self._shared.limits
        if self.running >= limits.http2.max_streams:
            # Their streams were reset, but they have not come to their end.
            raise StreamFailed(ErrorCode.REFUSED_STREAM, "too many handlers that still run")
        if self.engine.sender.queued_bytes > limits.max_waiting_bytes:
            raise StreamFailed(ErrorCode.REFUSED_STREAM, "too many bytes of answers that the client takes none of")
        call = Call(self, stream, head, method)
        try:
            call.begin()
        except CallFailed as failure:
            call.drop()
            return Refusal(self.loop, self.engine, stream, failure)
        return call

    def on_oversized(self, stream: Stream) -> None:
        limit = self._shared.limits.http2.max_header_list_bytes
        said = CallFailed(Code.RESOURCE_EXHAUSTED, f"more metadata than the {limit} bytes that are taken")
        if stream.peer_ended:
            self.engine.end(stream, failure_only(said))
        else:
            stream.receiver = Refusal(self.loop, self.engine, stream, said)

    def on_ping_answered(self, opaque: bytes) -> None:
        if opaque == _DRAIN and self._draining:
            # What was under way when the client learnt of it has arrived.
            self.engine.go_away(self.engine.last_stream, "the server is shutting down")

    # Time, and the end

    def look(self, now: float) -> None:
        """From time to time: is the client still there, and does it read?"""
        limits = self._shared.limits
        if not self.engine.greeted:
            if now - self._since > limits.greeting_timeout:
                self._abort("no HTTP/2 preface and SETTINGS in time")
        elif self._leaving and now - self._heard_at > limits.leaving_timeout:
            self.close()
        elif self._is_stuck(now):
            self._abort("a client that reads nothing")
        elif self._asked_at is not None:
            if now - self._asked_at > limits.keepalive_timeout:
                self._abort("no answer to PING")
        elif now - self._heard_at > limits.keepalive_interval and not (self._paused or self._leaving):
            self._asked_at = now
            self.engine.sender.write(frames.ping(_ALIVE, ack=False))
        self._reset_stuck_streams(now)
        if self._draining:
            self._leave_if_drained()

    def _is_stuck(self, now: float) -> bool:
        """The socket has taken nothing for long."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if not waiting or waiting < self._stuck_bytes:
            self._stuck_since = now
        self._stuck_bytes = waiting
        return now - self._stuck_since > self._shared.limits.stall_timeout

    def _reset_stuck_streams(self, now: float) -> None:
        """Those with an answer that the client makes no room for, or a request of one message that does not go on."""
        before, self._stuck_streams = self._stuck_streams, {}
        for number, stream in list(self.engine.streams.items()):
            unfinished = isinstance(stream.receiver, Call) and stream.receiver.is_unfinished
            if not (unfinished or stream.queue):
                continue
            moved, since = before.get(number, (-1, now))
            if moved != stream.moved:
                since = now
            elif now - since > self._shared.limits.stall_timeout:
                self.engine.reset(number, ErrorCode.CANCEL)
                continue
            self._stuck_streams[number] = stream.moved, since

    def drain(self) -> None:
        """Let the client go elsewhere with what is new, and answer what there is."""
        self._draining = True
        if not self.engine.greeted:
            self.close()
            return
        self.engine.go_away(frames.LAST_STREAM, "the server is shutting down")
        self.engine.sender.write(frames.ping(_DRAIN, ack=False))

    def _leave_if_drained(self) -> None:
        """Have the client close, and read until then: what it has not received yet would be lost with a socket that is
        closed while something of it lies there unread."""
        told = self.engine.accepted_up_to < frames.LAST_STREAM
        transport = self._transport
        if self._leaving or not told or self.running or self.engine.streams:
            return
        if transport is not None and not transport.is_closing():
            self._leaving, self._heard_at = True, self.loop.time()
            # TLS has no end of one direction; its clients have read GOAWAY.
            if transport.can_write_eof():
                transport.write_eof()

    def shut_down(self) -> None:
        """Give up the calls that there are, and say so."""
        for stream in list(self.engine.streams.values()):
            if isinstance(stream.receiver, Call):
                stream.receiver.shut_down()
        self.close()

    def abort(self) -> None:
        self._abort("the server has shut down")


def _peer(transport: asyncio.BaseTransport) -> str:
    name: Any = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return f"ipv6:[{name[0]}]:{name[1]}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"
    return "unix:"


def _common_name(certificate: Any) -> str | None:
    """Of the client's certificate, as the ssl module shows it."""
    subject = certificate.get("subject", ()) if certificate else ()
    return next((value for part in subject for key, value in part if key == "commonName"), None)
