"""One call on one stream of HTTP/2: what comes goes to its handler, and what that says goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from offramp_common.grpc_framing.messages import PREFIX_BYTES, MessageBytes, MessageReader, Packed, compressed, prefix
from offramp_common.http2.hpack import Field
from offramp_common.http2.server import ServerEngine
from offramp_common.http2.stream import Payload, Stream

from offramp_server.transport.handled_call import HandledCall
from offramp_server.transport.handling import failure_of, joined, parsed
from offramp_server.transport.interface import CallFailed, Code, Method, Parts
from offramp_server.transport.native.limits import Memory
from offramp_server.transport.native.metadata import (
    ANSWER_HEAD,
    OK_TRAILERS,
    Head,
    answer_head,
    failure_only,
    failure_trailers,
    ok_trailers,
)
from offramp_server.transport.native.refusals import FIRST_MESSAGE_SECONDS

# Up to here a prefix and its message are copied together into one frame.
_ONE_FRAME = 16_000
# A client that compresses gets answers of these sizes compressed. Larger ones would keep everybody else waiting.
_LEAST_COMPRESSED, _MOST_COMPRESSED = 1024, 64 * 1024
# What a handler that streams may be ahead of its client.
_SEND_AHEAD = 64 * 1024


class Host(Protocol):
    """The connection of a call."""

    loop: asyncio.AbstractEventLoop
    engine: ServerEngine[Head]
    memory: Memory
    max_message_bytes: int
    peer: str
    identity: str | None
    # Handlers that have not come to their end.
    running: int


class Call(HandledCall):
    """Takes what comes with the stream."""

    __slots__ = (
        "_begun",
        "_elsewhere",
        "_failure",
        "_head",
        "_heard",
        "_held",
        "_host",
        "_message",
        "_reader",
        "_stream",
    )

    def __init__(self, host: Host, stream: Stream, head: Head, method: Method) -> None:
        super().__init__(host.loop, method, head.timeout)
        self._host = host
        self._stream = stream
        self._head = head
        # Most requests come in one frame and need none.
        self._reader: MessageReader | None = None
        # The only message, or all of them.
        self._message: MessageBytes | Packed | None = None
        # Reserved of the memory of all connections.
        self._held = 0
        # Of that, what is not here any more: see `hold`.
        self._elsewhere = 0
        # Something came after the head.
        self._heard = False
        # What is still to be said: see `_say`.
        self._failure: CallFailed | None = None
        # The head of the answer is out.
        self._begun = False

    @property
    def is_unfinished(self) -> bool:
        """It waits for the rest of its only message."""
        return not self._started and not self._over

    def begin(self) -> None:
        """Raises CallFailed if there is no room for what its head takes."""
        if self._head.heavy_bytes:
            self._reserve()
        super().begin()

    # What comes

    def on_data(self, data: Payload, ended: bool) -> None:
        first, self._heard = not self._heard, True
        if self._over:
            self._say_failure()
            return
        try:
            if not (first and ended and self._is_whole(data)):
                self._feed(data, ended)
            else:
                self._start(parsed(self._method, bytes(data[PREFIX_BYTES:])))
        except CallFailed as failure:
            self._fail(failure)
        except Exception as error:
            self._fail(failure_of(self._method, error))

    def _is_whole(self, data: Payload) -> bool:
        """The only message, plain, and not too large."""
        if self._requests is not None or len(data) < PREFIX_BYTES or data[0]:
            return False
        size = int.from_bytes(data[1:PREFIX_BYTES])
        return size == len(data) - PREFIX_BYTES and size <= self._host.max_message_bytes

    def _feed(self, data: Payload, ended: bool) -> None:
        if self._reader is None:
            take = self._on_message
            self._reader = MessageReader(self._head.encoding, self._host.max_message_bytes, take, leave=take)
        self._reader.feed(data)
        self._reserve()
        if ended:
            self._on_end(self._reader)
        if self._requests is None:
            self._host.engine.credit(self._stream, len(data))
        else:
            self._requests.on_taken(len(data))

    def _on_message(self, message: MessageBytes | Packed) -> None:
        if self._requests is not None:
            self._requests.add(message)
        elif self._message is None:
            self._message = message
        else:
            raise CallFailed(Code.UNIMPLEMENTED, f"{self._method.path} takes one message, and there are more")

    def _on_end(self, reader: MessageReader) -> None:
        if not reader.between_messages:
            raise CallFailed(Code.INTERNAL, "the request ends within a message")
        if self._requests is not None:
            self._requests.end()
        elif self._message is None:
            raise CallFailed(Code.UNIMPLEMENTED, f"{self._method.path} takes one message, and there is none")
        else:
            message, self._message = self._message, None
            self._reserve()
            self._start(message if isinstance(message, Packed) else parsed(self._method, message))

    def hold(self, size: int) -> None:
        """So many bytes of requests that were taken from here are kept elsewhere, and count as if they were here. The
        call fails if there is no room for them."""
        if self._over:
            return
        self._elsewhere = size
        try:
            self._reserve()
        except CallFailed as failure:
            self._fail(failure)

    def _reserve(self) -> None:
        """What is kept here counts. Raises CallFailed if there is no room for it."""
        held = self._head.heavy_bytes + self._elsewhere + len(self._message or b"")
        if self._reader is not None:
            held += self._reader.held_bytes
        if self._requests is not None:
            held += self._requests.unread_bytes
        if held != self._held:
            if not self._host.memory.take(held - self._held):
                raise CallFailed(Code.RESOURCE_EXHAUSTED, "the server holds too many bytes of unfinished requests")
            self._held = held

    def on_reset(self, code: int) -> None:
        self._failure = None
        self.drop()

    def on_room(self) -> None:
        self._make_room()

    # What goes

    def _answer(self, message: bytes | Parts) -> None:
        if self._over:
            return
        engine, stream = self._host.engine, self._stream
        trailers = ok_trailers(self._trailing) if self._trailing else OK_TRAILERS
        most = min(_ONE_FRAME, self._host.max_message_bytes)
        if isinstance(message, bytes) and len(message) <= most and not self._head.squeezes:
            self._finish()
            engine.answer(stream, ANSWER_HEAD, prefix(len(message)), message, trailers)
        else:
            parts = self._framed(message)
            self._finish()
            engine.begin_answer(stream, answer_head(self._head.answer_encoding))
            for part in parts:
                engine.send(stream, part)
            engine.end(stream, trailers)
        engine.reward()

    async def _send(self, message: bytes | Parts) -> None:
        if self._over:
            return
        engine, stream = self._host.engine, self._stream
        parts = self._framed(message)
        if not self._begun:
            self._begun = True
            engine.begin_answer(stream, answer_head(self._head.answer_encoding))
        for part in parts:
            engine.send(stream, part)
        if stream.queued_bytes > _SEND_AHEAD:
            self._room = self._loop.create_future()
            await self._room

    def _framed(self, message: bytes | Parts) -> Sequence[Payload]:
        """Its prefix and itself, in one part where that is cheaper. Raises CallFailed."""
        size = message.size if isinstance(message, Parts) else len(message)
        if size > self._host.max_message_bytes:
            said = f"an answer of {size} bytes: at most {self._host.max_message_bytes} are sent"
            raise CallFailed(Code.RESOURCE_EXHAUSTED, said)
        squeezed = self._head.squeezes and _LEAST_COMPRESSED <= size <= _MOST_COMPRESSED
        if not squeezed and isinstance(message, Parts):
            first, *others = message.parts
            return (prefix(size) + first, *others)
        whole = joined(message)
        if squeezed:
            whole = compressed(whole, self._head.encoding)
        start = prefix(len(whole), squeezed)
        return (start + whole,) if len(whole) <= _ONE_FRAME else (start, whole)

    def _end_stream(self) -> None:
        if self._over:
            return
        trailers = ok_trailers(self._trailing)
        self._finish()
        if not self._begun:
            self._host.engine.begin_answer(self._stream, ANSWER_HEAD)
        self._host.engine.end(self._stream, trailers)
        self._host.engine.reward()

    def _say(self, failure: CallFailed) -> None:
        self._failure = failure
        if self._method.client_streaming and not (self._heard or self._begun or self._stream.peer_ended):
            self._timer = self._loop.call_later(FIRST_MESSAGE_SECONDS, self._say_failure)
        else:
            self._say_failure()

    def _say_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            said = failure_trailers if self._begun else failure_only
            self._host.engine.end(self._stream, said(failure, self._trailing))

    def _count(self, change: int) -> None:
        self._host.running += change

    def _finish(self) -> None:
        super()._finish()
        # It knows this call; without this only the garbage collector would free what it keeps.
        if self._reader is not None:
            self._reader.drop()
        self._message = None
        if self._held:
            self._host.memory.take(-self._held)
            self._held = 0

    # What a handler may ask

    def _read_metadata(self) -> Mapping[str, str | bytes]:
        return self._head.metadata()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The metadata as it came."""
        return self._head.fields

    @property
    def peer(self) -> str:
        return self._host.peer

    @property
    def identity(self) -> str | None:
        return self._host.identity

    # Its requests

    def give_back(self, size: int) -> None:
        if not self._over:
            self._reserve()
            if size:
                self._host.engine.credit(self._stream, size)
