"""An event loop whose clock is moved by hand, and a socket that is none: nothing waits or happens by chance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Between turns of the loop nobody waits for more.
_MOST_TURNS = 200
_THREAD_SECONDS = 0.01
# Bytes at which a protocol is asked to pause, and at which it may go on.
HIGH_WATER, _LOW_WATER = 20_000, 5_000
# Of what comes while it is not read.
_MOST_INCOMING = 2_000_000


class _NothingHappens:
    """In place of what waits for sockets."""

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def close(self) -> None: ...


class HandLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._selector = _NothingHappens()
        self._time = 1000.0
        # What nobody caught.
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._time

    def _process_events(self, events: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """What others would do in a thread takes a little while here."""
        done = self.create_future()

        def run() -> None:
            if not done.done():
                try:
                    done.set_result(func(*args))
                except Exception as error:
                    done.set_exception(error)

        self.call_later(_THREAD_SECONDS, run)
        return done

    def turn(self) -> None:
        """What is due, once."""
        self.stop()
        self.run_forever()

    def settle(self) -> None:
        """Everything that can run without time passing. Raises AssertionError if there is no end to it."""
        for _ in range(_MOST_TURNS):
            if not self.has_work:
                return
            self.turn()
        raise AssertionError("the loop has always something to do")

    @property
    def has_work(self) -> bool:
        return bool(self._ready) or any(timer.when() <= self._time for timer in self.timers)  # type: ignore[attr-defined]

    @property
    def timers(self) -> Iterator[asyncio.TimerHandle]:
        return (timer for timer in self._scheduled if not timer.cancelled())  # type: ignore[attr-defined]

    def advance(self, seconds: float) -> None:
        self._time += seconds

    def give_up(self) -> None:
        """Also after a failure nothing is left that would speak up later."""
        for _ in range(5):
            for task in asyncio.all_tasks(self):
                task.cancel()
            self.turn()
        self.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Code within may ask for the running loop, as callbacks may."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """As the loop would, and without a turn for it."""
        with self.running():
            function(*arguments)


class Socket(asyncio.Transport):
    """What asyncio's own does to a protocol, with a client that reads or does not."""

    def __init__(self, loop: HandLoop, protocol: asyncio.BaseProtocol, hear: Callable[[bytes], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 5)})
        self.client_reads = True
        self.closing = self.lost = False
        self.buffer = bytearray()
        self._loop = loop
        self._protocol = protocol
        self._hear = hear
        self._incoming = bytearray()
        self._reading = True
        self._asked_to_pause = False

    # Of the protocol

    def write(self, data: Any) -> None:
        assert not self.closing, "written after the end"
        if self.lost or not data:
            return
        if self.client_reads and not self.buffer:
            self._hear(bytes(data))
        else:
            self.buffer += data
            self._ask_to_pause()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """What is asked for is more than it takes to find something."""

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.buffer:
                self._loop.call_soon(self._lose, None)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The client closes in its turn."""
        self.close()

    def abort(self) -> None:
        self._end(None)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self._read)

    def is_reading(self) -> bool:
        return self._reading

    # Of the client

    def deliver(self, said: bytes) -> None:
        self._incoming += said
        del self._incoming[_MOST_INCOMING:]
        if not self.lost:
            self._loop.call(self._read)

    @property
    def undelivered(self) -> int:
        return len(self._incoming)

    def take(self, size: int) -> None:
        """The client reads so much of what has been written."""
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        self._hear(taken)
        if self._asked_to_pause and len(self.buffer) <= _LOW_WATER:
            self._asked_to_pause = False
            self._loop.call(self._protocol.resume_writing)
        if self.closing and not self.buffer and not self.lost:
            self._loop.call(self._lose, None)

    def end(self, error: Exception | None) -> None:
        """The client is gone."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        self.closing = True
        self.buffer.clear()
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._protocol.connection_lost(error)

    def _read(self) -> None:
        if self._incoming and self._reading and not self.closing:
            assert isinstance(self._protocol, asyncio.Protocol)
            said = bytes(self._incoming)
            self._incoming.clear()
            self._protocol.data_received(said)

    def _ask_to_pause(self) -> None:
        if len(self.buffer) > HIGH_WATER and not self._asked_to_pause:
            self._asked_to_pause = True
            self._protocol.pause_writing()
