"""What waits to be sent on a connection: frames in order, and data as far as the peer's windows allow (RFC 9113, 5.2).

Streams whose data has to wait take turns, a frame each, so that a large answer keeps no small one waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress

from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, StreamFailed
from offramp_common.http2.stream import Payload, Stream

# Blocks of fields together that certainly fit into a frame each.
_SMALL_BLOCKS = frames.FRAME_BYTES
# Bytes of DATA that are handed to the socket at a time.
_MOST_OUT = 256 * 1024


class Sender:
    """One connection's. `out` is to be taken by `take_output`."""

    def __init__(self, on_output: Callable[[], None], on_sent: Callable[[Stream], None]) -> None:
        """`on_output`: there is something to take, where there was nothing. `on_sent`: the stream has ended."""
        self.initial_window = frames.DEFAULT_WINDOW
        # What the next block of fields has to begin with.
        self.before_next_block = b""
        self._on_output = on_output
        self._on_sent = on_sent
        self._out: list[Payload] = []
        self._window = frames.DEFAULT_WINDOW
        # In turn, those with a queue whose own window has room. The others come back when theirs is widened.
        self._waiting: deque[Stream] = deque()
        # The socket takes nothing more for now.
        self.is_paused = False
        # Of DATA in `_out`.
        self._out_bytes = 0
        # Of all streams.
        self.queued_bytes = 0
        # Frames of calls so far: HEADERS and DATA.
        self.said = 0

    @property
    def waiting_bytes(self) -> int:
        """Of what is to be taken."""
        return sum(map(len, self._out))

    def take_output(self) -> list[Payload]:
        """What to write now. If the socket takes it, `resume` is to follow: there may be more."""
        out, self._out, self._out_bytes = self._out, [], 0
        return out

    def write(self, frame: bytes) -> None:
        if not self._out:
            self._on_output()
        self._out.append(frame)

    def headers(self, stream: Stream, block: bytes, end_stream: bool) -> None:
        self.said += 1
        if self.before_next_block:
            block, self.before_next_block = self.before_next_block + block, b""
        if len(block) <= frames.FRAME_BYTES:
            flags = frames.END_HEADERS | (frames.END_STREAM if end_stream else 0)
            self.write(frames.header(frames.HEADERS, flags, stream.number, len(block)) + block)
            return
        for frame in frames.headers(stream.number, block, end_stream):
            self.write(frame)

    def data(self, stream: Stream, payload: Payload) -> None:
        size = len(payload)
        if not size:
            return
        room = min(frames.FRAME_BYTES, self._window, stream.send_window)
        if size <= room and not stream.queue and not self._is_full:
            self._frame(stream, payload, size)
        else:
            self._wait(stream, payload, size)
            self._pump()

    def whole(self, stream: Stream, block: bytes, start: Payload, rest: Payload, trailers: bytes = b"") -> None:
        """A stream's fields, all of its data and its end (see `end`): in one piece if they are small."""
        size = len(start) + len(rest)
        room = min(frames.FRAME_BYTES, self._window, stream.send_window)
        if (
            not 0 < size <= room
            or self._is_full
            or self.before_next_block
            or len(block) + len(trailers) > _SMALL_BLOCKS
        ):
            self.headers(stream, block, end_stream=False)
            self.data(stream, start)
            self.data(stream, rest)
            self.end(stream, trailers)
            return
        self._window -= size
        stream.send_window -= size
        self._out_bytes += size
        # Each is shorter than 64 KB.
        number, pack, end = stream.number, frames.HEADER.pack, frames.END_STREAM
        parts = [
            pack(0, len(block), frames.HEADERS, frames.END_HEADERS, number), block,
            pack(0, size, frames.DATA, 0 if trailers else end, number), start, rest,
        ]  # fmt: skip
        if trailers:
            parts += (pack(0, len(trailers), frames.HEADERS, frames.END_HEADERS | end, number), trailers)
        self.said += 1 + len(parts) // 3
        self.write(b"".join(parts))
        self._on_sent(stream)

    def _wait(self, stream: Stream, payload: Payload, size: int) -> None:
        if stream.queue is None:
            stream.queue = deque()
        if not stream.queue and stream.send_window > 0:
            self._waiting.append(stream)
        stream.queue.append(payload)
        stream.queued_bytes += size
        self.queued_bytes += size

    def end(self, stream: Stream, trailers: bytes) -> None:
        """After what is queued. `trailers` is a block of fields, or empty: there are none."""
        stream.trailers = trailers
        if not stream.queue:
            self._finish(stream, trailers)

    def forget(self, stream: Stream) -> None:
        """It was reset: nothing more of it is sent."""
        if stream.queue:
            stream.queue.clear()
            self.queued_bytes -= stream.queued_bytes
            stream.queued_bytes = 0
            with suppress(ValueError):
                self._waiting.remove(stream)

    # What the peer allows

    def widen(self, increment: int) -> None:
        """Raises ConnectionFailed."""
        if not increment or self._window + increment > frames.LARGEST_WINDOW:
            raise ConnectionFailed(_code_of(increment), f"the connection's window is widened by {increment}")
        self._window += increment
        self._pump()

    def widen_stream(self, stream: Stream, increment: int) -> None:
        """Raises StreamFailed."""
        if not increment or stream.send_window + increment > frames.LARGEST_WINDOW:
            raise StreamFailed(_code_of(increment), f"a stream's window is widened by {increment}")
        if stream.queue and stream.send_window <= 0 < stream.send_window + increment:
            self._waiting.append(stream)
        stream.send_window += increment
        if stream.queue:
            self._pump()

    def set_initial_window(self, size: int, streams: Collection[Stream]) -> None:
        """It holds for the streams that there are as well. Raises ConnectionFailed."""
        change, self.initial_window = size - self.initial_window, size
        if not change:
            return
        for stream in streams:
            stream.send_window += change
            if stream.send_window > frames.LARGEST_WINDOW:
                raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
        self._waiting = deque(stream for stream in streams if stream.queue and stream.send_window > 0)
        self._pump()

    @property
    def _is_full(self) -> bool:
        """Nothing more for now: what is small shall not stand behind what is large, and somebody has to keep it."""
        return self.is_paused or self._out_bytes >= _MOST_OUT

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._pump()

    # In turns

    def _pump(self) -> None:
        """Frames of those that wait, as long as there is room for any."""
        while self._waiting and self._window > 0 and not self._is_full:
            stream = self._waiting.popleft()
            self._send_some(stream, min(frames.FRAME_BYTES, self._window, stream.send_window))
            if not stream.queue:
                self._emptied(stream)
            elif stream.send_window > 0:
                self._waiting.append(stream)

    def _send_some(self, stream: Stream, room: int) -> None:
        queue = stream.queue
        assert queue is not None
        payload = queue[0]
        if len(payload) <= room:
            queue.popleft()
        else:
            view = memoryview(payload)
            payload, queue[0] = view[:room], view[room:]
        size = len(payload)
        stream.queued_bytes -= size
        self.queued_bytes -= size
        self._frame(stream, payload, size)

    def _frame(self, stream: Stream, payload: Payload, size: int) -> None:
        self._window -= size
        stream.send_window -= size
        stream.moved += size
        self.said += 1
        self._out_bytes += size
        self.write(frames.header(frames.DATA, 0, stream.number, size))
        self._out.append(payload)

    def _emptied(self, stream: Stream) -> None:
        if stream.trailers is not None:
            self._finish(stream, stream.trailers)
        elif stream.receiver is not None:
            stream.receiver.on_room()

    def _finish(self, stream: Stream, trailers: bytes) -> None:
        if trailers:
            self.headers(stream, trailers, end_stream=True)
        else:
            self.write(frames.header(frames.DATA, frames.END_STREAM, stream.number, 0))
        self._on_sent(stream)


def _code_of(increment: int) -> ErrorCode:
    return ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
