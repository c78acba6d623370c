"""The server's side of a front end: its calls, each with its handler, over one link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from offramp_common.grpc_framing.fields import metadata_of

from offramp_server.transport.handled_call import HandledCall
from offramp_server.transport.handling import failure_of, joined, parsed
from offramp_server.transport.incoming import MESSAGE_BYTES
from offramp_server.transport.interface import CallFailed, Code, Method, Parts
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.frames import CallHead, Taker
from offramp_server.transport.relay.link import Link, assembled

# What one side of a stream may be ahead of the other, and one message more.
WINDOW_BYTES = 256 * 1024


class Relayed:
    """What all calls of one front end have in common."""

    def __init__(
        self,
        methods: Sequence[Method],
        max_message_bytes: int,
        control: Mapping[int, Taker],
        on_lost: Callable[[], None],
    ) -> None:
        """`control` takes what the front end says of itself."""
        self.loop = asyncio.get_running_loop()
        self.max_message_bytes = max_message_bytes
        self.calls: dict[int, RelayedCall] = {}
        # Handlers that have not come to their end.
        self.running = 0
        # A call that comes now was under way when the front end was told so.
        self.draining = False
        self.link = Link({**self._takers(), **control}, self._lost)
        self._methods = methods
        self._on_lost = on_lost

    def _takers(self) -> dict[int, Taker]:
        return {
            frames.CALL: self._on_call,
            frames.OPEN: self._on_open,
            frames.PART: self._on_part,
            frames.MESSAGE: self._on_message,
            frames.FINISHED: self._on_finished,
            frames.FAILED: self._on_failed,
            frames.CREDIT: self._on_credit,
            frames.CANCEL: self._on_cancel,
        }

    def _on_call(self, number: int, data: bytes, start: int, end: int) -> None:
        head = CallHead(data, start)
        call = self._begun(number, head)
        call.on_message(data, start + head.size, end)

    def _on_open(self, number: int, data: bytes, start: int, end: int) -> None:
        self._begun(number, CallHead(data, start)).begin()

    def _begun(self, number: int, head: CallHead) -> RelayedCall:
        call = self.calls[number] = RelayedCall(self, number, head, self._methods[head.method])
        if self.draining:
            call.shut_down()
        return call

    # What comes for a call that is over was under way when the front end learnt of that.

    def _on_part(self, number: int, data: bytes, start: int, end: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.on_part(data, start, end)

    def _on_message(self, number: int, data: bytes, start: int, end: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.on_message(data, start, end)

    def _on_finished(self, number: int, data: bytes, start: int, end: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.on_finished()

    def _on_failed(self, number: int, data: bytes, start: int, end: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.on_finished(frames.read_failure(data[start:end]))

    def _on_credit(self, number: int, data: bytes, start: int, end: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.on_credit(frames.read_number(data, start))

    def _on_cancel(self, number: int, data: bytes, start: int, end: int) -> None:
        unsent = self.link.forget(number)
        call = self.calls.get(number)
        if call is not None:
            call.on_cancel()
        elif unsent:
            self.link.send(frames.GONE, number)

    def _lost(self) -> None:
        for call in list(self.calls.values()):
            call.drop()
        self._on_lost()


class RelayedCall(HandledCall):
    """One call, and the context of its handler."""

    __slots__ = ("_ahead", "_head", "_number", "_owed", "_parts", "_relayed", "_unwanted")

    def __init__(self, relayed: Relayed, number: int, head: CallHead, method: Method) -> None:
        super().__init__(relayed.loop, method, head.timeout)
        self._relayed = relayed
        self._number = number
        self._head = head
        # Of a message that has not come completely.
        self._parts: bytearray | None = None
        # Messages that the client has not read, in bytes, and what the front end does not know to have been read here.
        self._ahead = self._owed = 0
        # The front end waits to hear that the handler has ended.
        self._unwanted = False

    # What comes

    def on_part(self, data: bytes, start: int, end: int) -> None:
        if self._parts is None:
            self._parts = bytearray()
        self._parts += memoryview(data)[start:end]

    def on_message(self, data: bytes, start: int, end: int) -> None:
        """All of a message, or its last part."""
        if self._over:
            return
        message, self._parts = assembled(self._parts, data, start, end), None
        if self._requests is not None:
            self._requests.add(message)
            self._requests.on_taken(len(message) + MESSAGE_BYTES)
            return
        try:
            request = parsed(self._method, message)
        except Exception as error:
            self._fail(failure_of(self._method, error))
        else:
            self._start(request)

    def on_finished(self, failure: CallFailed | None = None) -> None:
        if self._requests is not None:
            self._requests.end(failure)

    def on_credit(self, size: int) -> None:
        self._ahead -= size
        if self._ahead <= WINDOW_BYTES:
            self._make_room()

    def on_cancel(self) -> None:
        self._unwanted = True
        self.drop()
        if self._driven is None:
            self._say_gone()

    # What goes

    def _answer(self, message: bytes | Parts) -> None:
        if self._over:
            return
        message = joined(message)
        self._check(message)
        self._finish()
        self._say_trailing(self._trailing)
        self._relayed.link.send_message(frames.ANSWER, self._number, message)

    async def _send(self, message: bytes | Parts) -> None:
        if self._over:
            return
        message = joined(message)
        self._check(message)
        self._relayed.link.send_message(frames.MESSAGE, self._number, message)
        self._ahead += len(message) + MESSAGE_BYTES
        if self._ahead > WINDOW_BYTES:
            self._room = self._loop.create_future()
            await self._room

    def _check(self, message: bytes) -> None:
        """Raises CallFailed."""
        limit = self._relayed.max_message_bytes
        if len(message) > limit:
            raise CallFailed(Code.RESOURCE_EXHAUSTED, f"an answer of {len(message)} bytes: at most {limit} are sent")

    def _end_stream(self) -> None:
        if self._over:
            return
        self._finish()
        self._say_trailing(self._trailing)
        self._relayed.link.send(frames.END, self._number)

    def _say(self, failure: CallFailed) -> None:
        self._say_trailing((*self._trailing, *failure.trailing.items()))
        self._relayed.link.send(frames.FAILED, self._number, frames.failure(failure))

    def _say_trailing(self, pairs: Sequence[tuple[str, str | bytes]]) -> None:
        if pairs:
            self._relayed.link.send(frames.TRAILING, self._number, frames.trailing(pairs))

    def _say_gone(self) -> None:
        self._relayed.link.send(frames.GONE, self._number)

    def _count(self, change: int) -> None:
        self._relayed.running += change
        if self._unwanted and change < 0:
            self._say_gone()

    def _finish(self) -> None:
        super()._finish()
        self._parts = None
        self._relayed.calls.pop(self._number, None)

    # What a handler may ask

    def _read_metadata(self) -> Mapping[str, str | bytes]:
        return metadata_of(self._head.fields)

    @property
    def peer(self) -> str:
        return self._head.peer

    @property
    def identity(self) -> str | None:
        return self._head.identity

    # Its requests

    def give_back(self, size: int) -> None:
        self._owed += size
        if self._owed * 2 >= WINDOW_BYTES and not self._over:
            owed, self._owed = self._owed, 0
            self._relayed.link.send(frames.CREDIT, self._number, frames.number(owed))
