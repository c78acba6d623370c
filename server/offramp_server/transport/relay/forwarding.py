"""A front end's side of its link: handlers that hand each call to the server and bring back what it says.

They are handlers like any others, so whatever bounds and ends calls in a front end is what does so without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from offramp_common.grpc_framing.messages import MessageBytes
from offramp_common.http2.hpack import Field

from offramp_server.transport.incoming import MESSAGE_BYTES, Incoming
from offramp_server.transport.interface import CallContext, CallFailed, Code, Method
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.frames import Taker
from offramp_server.transport.relay.link import Link, assembled
from offramp_server.transport.relay.relayed_call import WINDOW_BYTES


def _gone() -> CallFailed:
    return CallFailed(Code.UNAVAILABLE, "the server is gone")


class RawContext(CallContext, Protocol):
    """Of a call that came over HTTP/2."""

    @property
    def fields(self) -> Sequence[Field]:
        """The metadata as it came."""
        ...

    def set_trailing(self, key: str, value: str | bytes) -> None: ...

    def hold(self, size: int) -> None:
        """The server keeps so many bytes of requests that no handler has taken. The call fails if that is too much."""
        ...


@dataclass(frozen=True, slots=True)
class MethodKind:
    """What a front end has to know of a method. The server knows it by its place among all of them."""

    path: str
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A service of methods that are handled elsewhere."""

    methods: tuple[Method, ...]

    @classmethod
    def over(cls, upstream: Upstream, kinds: Sequence[MethodKind]) -> Forwarded:
        return cls(tuple(_forward(upstream, number, kind) for number, kind in enumerate(kinds)))


def _forward(upstream: Upstream, number: int, kind: MethodKind) -> Method:
    make = _forward_stream if kind.server_streaming else _forward_requests if kind.client_streaming else _forward_once
    return Method(
        name=kind.path.rpartition("/")[2],
        path=kind.path,
        request_type="bytes",
        parse=bytes,
        client_streaming=kind.client_streaming,
        server_streaming=kind.server_streaming,
        handler=make(upstream, number, kind),
        swift=not (kind.client_streaming or kind.server_streaming),
    )


def _forward_once(upstream: Upstream, number: int, kind: MethodKind) -> Any:
    async def forward(request: bytes, context: RawContext) -> bytes:
        call = upstream.call(number, context, request)
        try:
            return await call.answer
        except asyncio.CancelledError:
            await upstream.give_up(call)
            raise

    return forward


def _forward_requests(upstream: Upstream, number: int, kind: MethodKind) -> Any:
    async def forward(requests: Incoming, context: RawContext) -> bytes:
        call = upstream.open(number, context)
        sending = asyncio.create_task(call.send_all(requests))
        try:
            return await call.answer
        finally:
            sending.cancel()
            await upstream.give_up(call)

    return forward


def _forward_stream(upstream: Upstream, number: int, kind: MethodKind) -> Any:
    async def forward(request: Any, context: RawContext) -> AsyncIterator[bytes]:
        if kind.client_streaming:
            call = upstream.open(number, context)
            sending = asyncio.create_task(call.send_all(request))
        else:
            call, sending = upstream.call(number, context, request), None
        try:
            async for message in call.answers:
                yield message
        finally:
            if sending is not None:
                sending.cancel()
            await upstream.give_up(call)

    return forward


class Upstream:
    """The server, as a front end knows it."""

    def __init__(self, control: Mapping[int, Taker], on_lost: Callable[[], None]) -> None:
        """`control` takes what the server says to the front end itself."""
        # Of messages that wait to be handed over; where there are more, no further call is taken.
        self.max_waiting_bytes = 0
        self.loop = asyncio.get_running_loop()
        self.link = Link({**self._takers(), **control}, self._lost)
        self.calls: dict[int, ForwardedCall] = {}
        self._count = 0
        self._is_lost = False
        self._on_lost = on_lost

    # What goes

    def call(self, method: int, context: RawContext, message: bytes) -> ForwardedCall:
        """With its only message. Raises CallFailed."""
        call = self._begin(context)
        head = self._head(method, context)
        if self.link.is_large(message):
            self.link.send(frames.OPEN, call.number, head)
            self.link.send_message(frames.MESSAGE, call.number, message)
        else:
            self.link.send(frames.CALL, call.number, head + message)
        return call

    def open(self, method: int, context: RawContext) -> ForwardedCall:
        """Its messages follow. Raises CallFailed."""
        call = self._begin(context)
        self.link.send(frames.OPEN, call.number, self._head(method, context))
        return call

    def _begin(self, context: RawContext) -> ForwardedCall:
        if self._is_lost:
            raise _gone()
        if self.link.waiting_bytes > self.max_waiting_bytes:
            raise CallFailed(Code.RESOURCE_EXHAUSTED, "the server takes requests more slowly than they come")
        self._count += 1
        call = self.calls[self._count] = ForwardedCall(self, self._count, context)
        return call

    def _head(self, method: int, context: RawContext) -> bytes:
        timeout = None if context.deadline is None else context.deadline - self.loop.time()
        return frames.call_head(method, timeout, context.peer, context.identity, context.fields)

    async def give_up(self, call: ForwardedCall) -> None:
        """Nobody wants it any more: return once its handler has ended, so that the client's bounds count it."""
        if call.number in self.calls:
            self.link.forget(call.number)
            self.link.send(frames.CANCEL, call.number)
            call.gone = self.loop.create_future()
            await call.gone

    # What comes

    def _takers(self) -> dict[int, Taker]:
        return {
            frames.ANSWER: self._on_answer,
            frames.MESSAGE: self._on_message,
            frames.PART: self._on_part,
            frames.CREDIT: self._on_credit,
            frames.TRAILING: self._on_trailing,
            frames.END: self._on_end,
            frames.FAILED: self._on_failed,
            frames.GONE: self._on_gone,
        }

    def _on_answer(self, number: int, data: bytes, start: int, end: int) -> None:
        self._ended(number).on_answer(data, start, end)

    def _on_message(self, number: int, data: bytes, start: int, end: int) -> None:
        self.calls[number].on_message(data, start, end)

    def _on_part(self, number: int, data: bytes, start: int, end: int) -> None:
        self.calls[number].on_part(data, start, end)

    def _on_credit(self, number: int, data: bytes, start: int, end: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.on_credit(frames.read_number(data, start))

    def _on_trailing(self, number: int, data: bytes, start: int, end: int) -> None:
        self.calls[number].on_trailing(frames.read_trailing(data[start:end]))

    def _on_end(self, number: int, data: bytes, start: int, end: int) -> None:
        self._ended(number).on_end(None)

    def _on_failed(self, number: int, data: bytes, start: int, end: int) -> None:
        self._ended(number).on_end(frames.read_failure(data[start:end]))

    def _on_gone(self, number: int, data: bytes, start: int, end: int) -> None:
        self._ended(number).on_end(_gone())

    def _ended(self, number: int) -> ForwardedCall:
        """Nobody wants what is still queued of it."""
        self.link.forget(number)
        return self.calls.pop(number)

    def _lost(self) -> None:
        self._is_lost = True
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.on_end(_gone())
        self._on_lost()


class ForwardedCall:
    """One call that the server handles."""

    __slots__ = ("_ahead", "_answers", "_context", "_owed", "_parts", "_room", "_upstream", "answer", "gone", "number")

    def __init__(self, upstream: Upstream, number: int, context: RawContext) -> None:
        self.number = number
        # The only message that the server answers with.
        self.answer: asyncio.Future[bytes] = upstream.loop.create_future()
        # That its handler has ended, if anybody waits for that.
        self.gone: asyncio.Future[None] | None = None
        self._upstream = upstream
        self._context = context
        self._answers: Incoming | None = None
        # Of a message that has not come completely.
        self._parts: bytearray | None = None
        # Messages that the server has not read, in bytes, and what the server does not know to have been read here.
        self._ahead = self._owed = 0
        self._room: asyncio.Future[None] | None = None

    @property
    def answers(self) -> Incoming:
        """The messages, of a method that streams them."""
        if self._answers is None:
            self._answers = Incoming(self)
        return self._answers

    async def send_all(self, requests: Incoming) -> None:
        """Until there are no more, or one cannot be read: the handler is told where it would have read that."""
        try:
            await self._send_each(requests)
        except CallFailed as failure:
            self._upstream.link.send(frames.FAILED, self.number, frames.failure(failure))
        except Exception as error:
            self.on_end(error)

    async def _send_each(self, requests: Incoming) -> None:
        link, number = self._upstream.link, self.number
        async for message in requests:
            link.send_message(frames.MESSAGE, number, message)
            self._ahead += len(message) + MESSAGE_BYTES
            if self._ahead > WINDOW_BYTES:
                self._context.hold(self._ahead)
                self._room = self._upstream.loop.create_future()
                await self._room
        # A client that takes its call back has not said that there are no more.
        if requests.complete:
            link.send(frames.FINISHED, number)

    # What comes

    def on_answer(self, data: bytes, start: int, end: int) -> None:
        if self.gone is not None:
            _tell(self.gone)
        elif not self.answer.done():
            self.answer.set_result(assembled(self._parts, data, start, end))

    def on_part(self, data: bytes, start: int, end: int) -> None:
        if self._parts is None:
            self._parts = bytearray()
        self._parts += memoryview(data)[start:end]

    def on_message(self, data: bytes, start: int, end: int) -> None:
        message, self._parts = assembled(self._parts, data, start, end), None
        answers = self.answers
        answers.add(message)
        answers.on_taken(len(message) + MESSAGE_BYTES)

    def on_credit(self, size: int) -> None:
        self._ahead -= size
        if self._ahead <= WINDOW_BYTES and self._room is not None:
            self._context.hold(0)
            _tell(self._room)

    def on_trailing(self, pairs: Sequence[tuple[str, str | bytes]]) -> None:
        for key, value in pairs:
            self._context.set_trailing(key, value)

    def on_end(self, failure: Exception | None) -> None:
        if self.gone is not None:
            _tell(self.gone)
        elif self._answers is not None:
            self._answers.end(failure)
        elif not self.answer.done():
            self.answer.set_exception(failure or _gone())
            # Whoever waits for it may have been cancelled meanwhile, and then nobody asks.
            self.answer.exception()

    # Of `answers`

    def parse(self, message: MessageBytes) -> bytes:
        return bytes(message)

    def give_back(self, size: int) -> None:
        self._owed += size
        if self._owed * 2 >= WINDOW_BYTES:
            owed, self._owed = self._owed, 0
            self._upstream.link.send(frames.CREDIT, self.number, frames.number(owed))


def _tell(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
