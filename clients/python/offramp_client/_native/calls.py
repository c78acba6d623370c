"""One call on a stream of HTTP/2, whoever waits for it: without I/O, and without a clock of its own."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from offramp_common.grpc_framing.fields import written_timeout
from offramp_common.grpc_framing.messages import PREFIX_BYTES, MessageBytes, MessageReader, Packed, prefix
from offramp_common.grpc_framing.status import CallFailed, Code
from offramp_common.http2.client import ClientEngine
from offramp_common.http2.errors import ErrorCode, StreamFailed, code_name
from offramp_common.http2.hpack import literal
from offramp_common.http2.stream import Payload, Stream

from offramp_client._native.fields import Fields

CANCELLED = "the call was cancelled"
# Heads that announce another one. A server of gRPC sends none.
_MOST_INTERIM = 4
# What a message takes beyond its bytes, and what a server that streams may be ahead of its reader.
_MESSAGE_BYTES = 64
_READ_AHEAD = 64 * 1024
# How a stream that is reset ends its call (gRPC over HTTP/2, "Errors"); INTERNAL for every other code.
_CODES = {
    int(ErrorCode.REFUSED_STREAM): Code.UNAVAILABLE,
    int(ErrorCode.CANCEL): Code.CANCELLED,
    int(ErrorCode.ENHANCE_YOUR_CALM): Code.RESOURCE_EXHAUSTED,
    int(ErrorCode.INADEQUATE_SECURITY): Code.PERMISSION_DENIED,
}


class Channel(Protocol):
    """Where calls are made."""

    max_message_bytes: int

    def again(self, call: Call) -> None:
        """The server has not looked at it: begin it once more, as soon as that can be."""
        ...

    def on_freed(self) -> None:
        """One has been given up that had a stream: there may be room for another one."""
        ...


class Call:
    """Takes what comes with the stream. Subclasses tell whoever waits: `on_message`, `on_over`, `on_room`."""

    __slots__ = (
        "_block",
        "_channel",
        "_engine",
        "_head",
        "_interim",
        "_owed",
        "_reader",
        "_refused",
        "_request",
        "_server_streaming",
        "_unread_bytes",
        "deadline",
        "failure",
        "messages",
        "over",
        "stream",
    )

    def __init__(
        self, channel: Channel, block: bytes, request: bytes | None, deadline: float, server_streaming: bool
    ) -> None:
        """`request` None: its messages follow. `deadline` on the channel's clock, infinite for none."""
        self.deadline = deadline
        # How it ended, once it is over; None: well.
        self.failure: CallFailed | None = None
        self.over = False
        # None while it waits for a connection, or for its turn there.
        self.stream: Stream | None = None
        self.messages: deque[MessageBytes | Packed] = deque()
        self._channel = channel
        self._block = block
        self._request = request
        self._server_streaming = server_streaming
        self._engine: ClientEngine[Fields] | None = None
        self._head: Fields | None = None
        # Most answers come in one frame and need none.
        self._reader: MessageReader | None = None
        self._interim = 0
        self._refused = False
        # Of messages that nobody has taken, and what the server has not been told that there is room for again.
        self._unread_bytes = 0
        self._owed = 0

    # For who makes it

    def begin(self, engine: ClientEngine[Fields], now: float) -> None:
        """Its turn has come: `engine.can_begin`."""
        request = self._request
        if request is not None and not self._fits(request):
            return
        block = self._block
        if self.deadline < math.inf:
            block += literal(b"grpc-timeout", written_timeout(self.deadline - now))
        self._engine = engine
        self.stream = stream = engine.begin(self)
        if request is None:
            engine.begin_request(stream, block)
        else:
            engine.request(stream, block, prefix(len(request)), request)

    def send(self, message: bytes) -> None:
        """One of several requests. It waits here if the server has no room for it: see `queued_bytes`."""
        if self.over or self._engine is None or self.stream is None:
            return
        if self._fits(message):
            self._engine.send(self.stream, prefix(len(message)))
            self._engine.send(self.stream, message)

    def _fits(self, message: bytes) -> bool:
        """Or the call is over."""
        limit = self._channel.max_message_bytes
        if len(message) > limit:
            said = f"a request of {len(message)} bytes is larger than max_message_bytes, which is {limit}"
            self.fail(CallFailed(Code.RESOURCE_EXHAUSTED, said))
        return not self.over

    def end_requests(self) -> None:
        if not self.over and self._engine is not None and self.stream is not None:
            self._engine.end(self.stream)

    @property
    def queued_bytes(self) -> int:
        """Of requests that have not left."""
        return 0 if self.over or self.stream is None else self.stream.queued_bytes

    def take(self) -> MessageBytes:
        """The next of `messages`. Raises CallFailed, and ends the call, if it cannot be unpacked."""
        message = self.messages.popleft()
        self._unread_bytes -= len(message) + _MESSAGE_BYTES
        self._give_back(0)
        if not isinstance(message, Packed):
            return message
        try:
            return message.unpacked()
        except CallFailed as failure:
            self.messages.clear()
            self.fail(failure)
            # It may have been over before.
            self.failure = failure
            raise

    def expire(self) -> None:
        self.fail(CallFailed(Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"))

    def cancel(self, why: str = CANCELLED) -> None:
        self.fail(CallFailed(Code.CANCELLED, why))

    def fail(self, failure: CallFailed) -> None:
        """Give it up, on the server too."""
        if self.over:
            return
        engine, stream = self._engine, self.stream
        self._end(failure)
        if engine is not None and stream is not None and stream.number in engine.streams:
            engine.reset(stream.number, ErrorCode.CANCEL)
            self._channel.on_freed()

    # What comes

    def on_fields(self, fields: Fields, ended: bool) -> None:
        if self.over:
            return
        if self._head is not None:
            if not ended or fields.http_status is not None:
                raise StreamFailed(ErrorCode.PROTOCOL_ERROR, "fields in the middle of an answer")
            self._on_trailers(fields)
        elif fields.http_status is None:
            raise StreamFailed(ErrorCode.PROTOCOL_ERROR, "an answer without :status")
        elif ended:
            self._on_trailers(fields)
        elif fields.http_status < 200:
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                raise StreamFailed(ErrorCode.ENHANCE_YOUR_CALM, "too many heads that announce another one")
        else:
            self._head = fields
            wrong = fields.not_grpc()
            if wrong is not None:
                self.fail(wrong)

    def _on_trailers(self, fields: Fields) -> None:
        failure = fields.ending()
        if failure is None:
            failure = self._incomplete()
        self._end(failure)

    def _incomplete(self) -> CallFailed | None:
        """What is missing of an answer whose status is OK."""
        if self._reader is not None and not self._reader.between_messages:
            return CallFailed(Code.INTERNAL, "the answer ends within a message")
        if not self._server_streaming and not self.messages:
            return CallFailed(Code.INTERNAL, "the answer's status is OK, and it has no message")
        return None

    def on_data(self, data: Payload, ended: bool) -> None:
        if self.over:
            return
        if self._head is None:
            raise StreamFailed(ErrorCode.PROTOCOL_ERROR, "DATA before the head of the answer")
        try:
            if self._reader is None and self._is_whole(data):
                self._on_message(bytes(data[PREFIX_BYTES:]))
            else:
                self._feed(data)
        except CallFailed as failure:
            self.fail(failure)
            return
        self._give_back(len(data))
        if ended:
            self._end(CallFailed(Code.INTERNAL, "the answer ends without trailers"))

    def _is_whole(self, data: Payload) -> bool:
        """One message, plain, and not too large."""
        if len(data) < PREFIX_BYTES or data[0]:
            return False
        size = int.from_bytes(data[1:PREFIX_BYTES])
        return size == len(data) - PREFIX_BYTES and size <= self._channel.max_message_bytes

    def _feed(self, data: Payload) -> None:
        if self._reader is None:
            encoding = self._head.encoding if self._head is not None else ""
            # Of a stream nobody may have asked for the next message yet: until then it stays as small as it came.
            leave = self._on_message if self._server_streaming else None
            self._reader = MessageReader(encoding, self._channel.max_message_bytes, self._on_message, leave, soon=0)
        self._reader.feed(data)

    def _on_message(self, message: MessageBytes | Packed) -> None:
        if self.over:
            return
        if self.messages and not self._server_streaming:
            raise CallFailed(Code.INTERNAL, "one answer was expected, and there are more")
        self.messages.append(message)
        self._unread_bytes += len(message) + _MESSAGE_BYTES
        self.on_message()

    def _give_back(self, size: int) -> None:
        """So much more has come. While a message is incomplete there is always room for the rest of it."""
        self._owed += size
        if self._owed and (self._unread_bytes <= _READ_AHEAD or not self._server_streaming) and not self.over:
            owed, self._owed = self._owed, 0
            if self._engine is not None and self.stream is not None:
                self._engine.credit(self.stream, owed)

    def on_reset(self, code: int) -> None:
        if self.over:
            return
        if code == ErrorCode.REFUSED_STREAM and self._request is not None and not (self._refused or self._head):
            # Nobody has looked at it. If that happens twice it is told.
            self._refused = True
            self._engine = self.stream = None
            self._channel.again(self)
            return
        self._end(CallFailed(_CODES.get(code, Code.INTERNAL), f"the stream was reset: {code_name(code)}"))

    def lose(self, reason: str) -> None:
        """Its connection is gone, or there is none."""
        self._end(CallFailed(Code.UNAVAILABLE, reason))

    def _end(self, failure: CallFailed | None) -> None:
        if self.over:
            return
        self.over = True
        self.failure = failure
        # Stream, engine and call know each other; without this only the garbage collector would free them.
        self._engine = self.stream = None
        # It may still stand behind others that wait for their turn.
        self._request = None
        if self._reader is not None:
            self._reader.drop()
            self._reader = None
        self.on_over()

    # For subclasses

    def on_message(self) -> None:
        """There is another one in `messages`."""

    def on_over(self) -> None:
        """There is nothing more to come than what is in `messages`."""

    def on_room(self) -> None:
        """Everything that was queued has been sent."""


def interrupted(error: BaseException) -> str:
    """Why a stream is cancelled whose requests cannot be read to their end."""
    return f"the iterator of requests was interrupted by {type(error).__name__}"
