"""One end of a link: frames from a stream socket, and frames into it, written once in a turn of the loop.

Large messages go in parts, and those of different calls take turns with each other and let everything small pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from offramp_common.write_parts import write_parts

from offramp_server.transport.relay.frames import HEADER, HEADER_BYTES, PART, FrameReader, Taker

# What is more goes in parts of this size, so that what is small does not stand behind it for long.
_PART_BYTES = 64 * 1024
# Of parts, in one turn of the loop.
_PARTS_BYTES_IN_A_TURN = 256 * 1024
# What is read at a time: more than the 64 KiB that loops read by themselves.
_READ_BYTES = 256 * 1024
# What the socket may keep before no more is given to it.
_KEPT_BYTES = 256 * 1024

# The size of what is no message, and goes in one frame whatever its size.
_WHOLE = 0

_logger = logging.getLogger("offramp.transport")


class Link(asyncio.BufferedProtocol):
    """The protocol of a stream socket to the other process."""

    def __init__(self, takers: Mapping[int, Taker], on_lost: Callable[[], None]) -> None:
        """`on_lost` is called once, when the other end is gone or does not keep to the frames."""
        # Of large messages that have not gone completely, and of what waits to be written.
        self._held_bytes = self._out_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(takers)
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        # Nobody hears what is said.
        self._is_lost = False
        # Output waits until what came has been read to its end.
        self._receiving = False
        # It is going to be written in this turn or the next.
        self._woken = False
        self._paused = False
        self._out: list[bytes | memoryview] = []
        # By call, a large message and what waits behind it: kind, what is left of it, and the size of a message.
        self._queues: dict[int, deque[tuple[int, memoryview, int]]] = {}
        # The calls that have one.
        self._turns: deque[int] = deque()

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_KEPT_BYTES)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._receiving = True
        try:
            self._reader.feed(bytes(self._buffer[:nbytes]))
        except Exception:
            _logger.exception("a link between processes of the server is broken")
            self.abort()
        finally:
            self._receiving = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport, self._is_lost = None, True
        self._out, self._queues, self._turns = [], {}, deque()
        self._held_bytes = self._out_bytes = 0
        self._on_lost()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def close(self) -> None:
        """After what has been said is out, but for large messages."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What goes

    @property
    def waiting_bytes(self) -> int:
        """What this end was given and the socket was not, a message counting until all of it has gone."""
        return self._held_bytes + self._out_bytes

    def send(self, kind: int, call: int, body: bytes = b"") -> None:
        """One frame, after what was sent of the call before."""
        if self._is_lost:
            return
        queue = self._queues.get(call)
        if queue is None:
            frame = HEADER.pack(len(body), kind, call) + body
            self._out.append(frame)
            self._out_bytes += len(frame)
        else:
            queue.append((kind, memoryview(body), _WHOLE))
        self._wake()

    @staticmethod
    def is_large(message: bytes) -> bool:
        return len(message) > _PART_BYTES

    def send_message(self, kind: int, call: int, message: bytes) -> None:
        """The same for a message, which goes in parts if it is large; the last one is of that kind."""
        if len(message) <= _PART_BYTES or self._is_lost:
            self.send(kind, call, message)
            return
        queue = self._queues.get(call)
        if queue is None:
            queue = self._queues[call] = deque()
            self._turns.append(call)
        queue.append((kind, memoryview(message), len(message)))
        self._held_bytes += len(message)
        self._wake()

    def _wake(self) -> None:
        if not (self._woken or self._receiving or self._paused):
            self._woken = True
            self._loop.call_soon(self._flush)

    def forget(self, call: int) -> bool:
        """Nobody wants what is queued of it. Whether there was anything."""
        queue = self._queues.pop(call, None)
        if queue is None:
            return False
        self._turns.remove(call)
        self._held_bytes -= sum(size for _, _, size in queue)
        return True

    def _flush(self) -> None:
        self._woken = False
        transport = self._transport
        if transport is None or self._paused or transport.is_closing():
            return
        has_parts = bool(self._turns)
        if has_parts:
            self._take_turns()
        if self._out:
            out, self._out, self._out_bytes = self._out, [], 0
            if has_parts:
                write_parts(transport, out)
            else:
                transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self._turns:
            self._wake()

    def _take_turns(self) -> None:
        left = _PARTS_BYTES_IN_A_TURN
        while self._turns and left > 0:
            call = self._turns.popleft()
            queue = self._queues[call]
            left -= self._send_part(call, queue)
            if queue:
                self._turns.append(call)
            else:
                del self._queues[call]

    def _send_part(self, call: int, queue: deque[tuple[int, memoryview, int]]) -> int:
        """Of what is first in the queue. Returns its bytes."""
        kind, body, size = queue[0]
        if size == _WHOLE or len(body) <= _PART_BYTES:
            queue.popleft()
            self._held_bytes -= size
        else:
            kind, queue[0] = PART, (kind, body[_PART_BYTES:], size)
            body = body[:_PART_BYTES]
        self._out += (HEADER.pack(len(body), kind, call), body)
        return HEADER_BYTES + len(body)


def assembled(parts: bytearray | None, data: Any, start: int, end: int) -> bytes:
    """A message from what came of it before and its last part."""
    if parts is None:
        return bytes(data[start:end])
    parts += memoryview(data)[start:end]
    return bytes(parts)
