"""One call on one stream of HTTP/2: what comes goes to its handler, and what that says goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol, cast

from offramp_common.http2.server import ServerEngine
from offramp_common.http2.stream import Payload, Stream

from offramp_server.transport.handling import failure_of, parsed, serialized
from offramp_server.transport.interface import CallFailed, Code, Method
from offramp_server.transport.native.driver import Driven
from offramp_server.transport.native.limits import Memory
from offramp_server.transport.native.messages import PREFIX_BYTES, MessageReader, compressed, prefix
from offramp_server.transport.native.metadata import (
    ANSWER_HEAD,
    OK_TRAILERS,
    Head,
    answer_head,
    failure_only,
    failure_trailers,
    ok_trailers,
)
from offramp_server.transport.native.requests import Requests

# Up to here a prefix and its message are copied together into one frame.
_ONE_FRAME = 16_000
# A client that compresses gets answers of these sizes compressed. Larger ones would keep everybody else waiting.
_LEAST_COMPRESSED, _MOST_COMPRESSED = 1024, 64 * 1024
# What a handler that streams may be ahead of its client.
_SEND_AHEAD = 64 * 1024
# How long a client that streams may take to its first message.
_FIRST_MESSAGE_SECONDS = 0.1

_CUT_OFF = CallFailed(Code.UNAVAILABLE, "the server is shutting down")


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


class Call:
    """Takes what comes with the stream, and is the `CallContext` of the handler."""

    __slots__ = (
        "__weakref__",
        "_begun",
        "_driven",
        "_failure",
        "_head",
        "_heard",
        "_held",
        "_host",
        "_message",
        "_metadata",
        "_method",
        "_over",
        "_reader",
        "_requests",
        "_room",
        "_started",
        "_stream",
        "_timer",
        "_trailing",
        "deadline",
    )

    def __init__(self, host: Host, stream: Stream, head: Head, method: Method) -> None:
        self.deadline = None if head.timeout is None else host.loop.time() + head.timeout
        self._host = host
        self._stream = stream
        self._head = head
        self._method = method
        # Most requests come in one frame and need none.
        self._reader: MessageReader | None = None
        # The only message, or all of them.
        self._message: bytes | None = None
        self._requests = Requests(self) if method.client_streaming else None
        # Reserved of the memory of all connections.
        self._held = 0
        self._metadata: Mapping[str, str | bytes] | None = None
        self._trailing: list[tuple[str, str]] = []
        # Something came after the head.
        self._heard = False
        # Its handler has been begun.
        self._started = False
        # What is still to be said: see `_fail`.
        self._failure: CallFailed | None = None
        # The head of the answer is out.
        self._begun = False
        # There is nothing more to say: it has been answered, or nobody listens.
        self._over = False
        self._driven: Driven | asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """The head has come."""
        if self._requests is not None:
            self._start(self._requests)

    @property
    def is_unfinished(self) -> bool:
        """It waits for the rest of its only message."""
        return not self._started and not self._over

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
            self._reader = MessageReader(self._head.encoding, self._host.max_message_bytes, self._on_message)
        self._reader.feed(data)
        self._reserve()
        if ended:
            self._on_end(self._reader)
        if self._requests is None:
            self._host.engine.credit(self._stream, len(data))
        else:
            self._requests.on_taken(len(data))

    def _on_message(self, message: bytes) -> None:
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
            self._start(parsed(self._method, message))

    def _reserve(self) -> None:
        """What is kept here counts. Raises CallFailed if there is no room for it."""
        held = len(self._message or b"")
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
        if not self._over:
            self._finish()
            self._cancel()

    def on_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # The handler

    def _start(self, request: Any) -> None:
        self._started = True
        host, method = self._host, self._method
        if self.deadline is not None and self.deadline <= host.loop.time():
            self._expire()
            return
        host.running += 1
        if method.server_streaming:
            self._as_task(self._answer_stream(request))
        elif method.swift:
            coroutine = cast("Coroutine[Any, Any, Any]", method.handler(request, self))
            self._driven = driven = Driven(coroutine, host.loop, self._on_answer)
            driven.start()
        else:
            self._as_task(self._answer_once(request))
        if self.deadline is not None and not self._over:
            self._timer = host.loop.call_at(self.deadline, self._expire)

    def _as_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._driven = task = self._host.loop.create_task(coroutine)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """It has answered by itself, unless it was cancelled or something is wrong with its answer."""
        self._ended_handler()
        if task.cancelled():
            self._fail(_CUT_OFF)
        elif task.exception() is not None:
            self._fail(failure_of(self._method, cast("BaseException", task.exception())))

    def _on_answer(self, answer: Any, error: BaseException | None) -> None:
        self._ended_handler()
        if self._over:
            return
        if error is None:
            try:
                self._answer(serialized(answer))
            except Exception as unfit:
                self._fail(failure_of(self._method, unfit))
        else:
            self._fail(_CUT_OFF if isinstance(error, asyncio.CancelledError) else failure_of(self._method, error))

    async def _answer_once(self, request: Any) -> None:
        try:
            self._answer(serialized(await cast("Coroutine[Any, Any, Any]", self._method.handler(request, self))))
        except Exception as error:
            self._fail(failure_of(self._method, error))

    async def _answer_stream(self, request: Any) -> None:
        try:
            # Closed here and not by the garbage collector, so that a cancelled stream has let go of its work at once.
            async with aclosing(cast("Any", self._method.handler(request, self))) as answers:
                async for answer in answers:
                    await self._send(serialized(answer))
        except Exception as error:
            self._fail(failure_of(self._method, error))
        else:
            self._end_stream()

    def _ended_handler(self) -> None:
        self._driven = None
        self._host.running -= 1

    def _cancel(self) -> None:
        if self._driven is not None:
            self._driven.cancel()

    def _expire(self) -> None:
        if not self._over:
            self._fail(CallFailed(Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"))

    def shut_down(self) -> None:
        """Give it up, and say so."""
        if not self._over:
            self._fail(_CUT_OFF)

    # What goes

    def _answer(self, message: bytes) -> None:
        """All of it at once. Raises CallFailed for one that is too large."""
        if self._over:
            return
        engine, stream = self._host.engine, self._stream
        trailers = ok_trailers(self._trailing) if self._trailing else OK_TRAILERS
        if len(message) <= min(_ONE_FRAME, self._host.max_message_bytes) and not self._head.squeezes:
            self._finish()
            engine.answer(stream, ANSWER_HEAD, prefix(len(message)) + message, trailers)
        else:
            parts = self._framed(message)
            self._finish()
            engine.begin_answer(stream, answer_head(self._head.encoding))
            for part in parts:
                engine.send(stream, part)
            engine.end(stream, trailers)
        engine.reward()

    async def _send(self, message: bytes) -> None:
        """One of several. Raises CallFailed for one that is too large."""
        if self._over:
            return
        engine, stream = self._host.engine, self._stream
        parts = self._framed(message)
        if not self._begun:
            self._begun = True
            engine.begin_answer(stream, answer_head(self._head.encoding))
        for part in parts:
            engine.send(stream, part)
        if stream.queued_bytes > _SEND_AHEAD:
            self._room = self._host.loop.create_future()
            await self._room

    def _framed(self, message: bytes) -> tuple[bytes, ...]:
        """Its prefix and itself, in one part where that is cheaper. Raises CallFailed."""
        if len(message) > self._host.max_message_bytes:
            said = f"an answer of {len(message)} bytes: at most {self._host.max_message_bytes} are sent"
            raise CallFailed(Code.RESOURCE_EXHAUSTED, said)
        squeezed = self._head.squeezes and _LEAST_COMPRESSED <= len(message) <= _MOST_COMPRESSED
        if squeezed:
            message = compressed(message, self._head.encoding)
        start = prefix(len(message), squeezed)
        return (start + message,) if len(message) <= _ONE_FRAME else (start, message)

    def _end_stream(self) -> None:
        if self._over:
            return
        trailers = ok_trailers(self._trailing)
        self._finish()
        if not self._begun:
            self._host.engine.begin_answer(self._stream, ANSWER_HEAD)
        self._host.engine.end(self._stream, trailers)
        self._host.engine.reward()

    def _fail(self, failure: CallFailed) -> None:
        if self._over:
            return
        # grpc.aio forgets the status of a stream that ends before its first message is out.
        too_early = self._requests is not None and not (self._heard or self._begun or self._stream.peer_ended)
        self._finish()
        self._failure = failure
        if too_early:
            self._timer = self._host.loop.call_later(_FIRST_MESSAGE_SECONDS, self._say_failure)
        else:
            self._say_failure()
        self._cancel()

    def _say_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            said = failure_trailers if self._begun else failure_only
            self._host.engine.end(self._stream, said(failure, self._trailing))

    def _finish(self) -> None:
        self._over = True
        # Both know this call; without this only the garbage collector would free what they keep.
        if self._reader is not None:
            self._reader.drop()
        if self._requests is not None:
            self._requests.drop()
            self._requests = None
        self._message = None
        if self._held:
            self._host.memory.take(-self._held)
            self._held = 0
        if self._timer is not None:
            self._timer.cancel()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # What a handler may ask

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Raises CallFailed for what no metadata is."""
        if self._metadata is None:
            self._metadata = self._head.metadata()
        return self._metadata

    @property
    def peer(self) -> str:
        return self._host.peer

    @property
    def identity(self) -> str | None:
        return self._host.identity

    def set_trailing(self, key: str, value: str) -> None:
        self._trailing.append((key, value))

    # Its requests

    def parse(self, message: bytes) -> Any:
        """Raises CallFailed."""
        return parsed(self._method, message)

    def give_back(self, size: int) -> None:
        """A handler has read so much; the client may send as much again."""
        if not self._over:
            self._reserve()
            self._host.engine.credit(self._stream, size)
