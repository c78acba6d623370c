"""One front end as the server knows it, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from offramp_server.errors import ConfigurationError
from offramp_server.transport.interface import Method
from offramp_server.transport.listening import SharedAddress, close_all
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.hello import Hello
from offramp_server.transport.relay.processes import Launch, Started
from offramp_server.transport.relay.relayed_call import Relayed

_logger = logging.getLogger("offramp.transport")


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds."""

    # What a front end may take to listen.
    start: float = 60.0
    # Before one that ended is started again: at first, and at most.
    first_pause: float = 0.1
    longest_pause: float = 10.0
    # What one may say nothing for, twice in a row, before it is taken to hang.
    silence: float = 15.0
    # What one may take to end beyond the grace that calls have, to give up what is left and say so.
    last_words: float = 3.0


@dataclass(frozen=True, slots=True)
class Common:
    """What all front ends of a server have in common."""

    methods: Sequence[Method]
    address: SharedAddress
    hello: Callable[[], Hello]
    launch: Launch
    patience: Patience


class RunningFrontEnd:
    """It is there until `lost` is set; `end` has to be called in any case."""

    def __init__(self, number: int, common: Common) -> None:
        """Starts it. Raises OSError."""
        # As it said last.
        self.connections = 0
        self.lost = asyncio.Event()
        self._number = number
        self._patience = common.patience
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        hello = common.hello()
        self._hello = hello.encode()
        self._relayed = Relayed(common.methods, hello.listen.max_message_bytes, self._control(), self._on_lost)
        # Our end belongs to the link, and is not to be closed behind its back.
        self._linked = False
        # It has said something since that was looked at.
        self._spoke = False
        self._hangs = False
        self._ours, self._started = _launch(common)

    def _control(self) -> dict[int, frames.Taker]:
        return {
            frames.READY: self._on_ready,
            frames.REFUSED: self._on_refused,
            frames.CONNECTIONS: self._on_connections,
        }

    @property
    def pid(self) -> int | None:
        return self._started.pid

    async def ready(self) -> None:
        """Return once it listens. Raises ConfigurationError if it cannot."""
        link = self._relayed.link
        self._linked = True
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=self._ours)
        link.send(frames.HELLO, 0, self._hello)
        try:
            async with asyncio.timeout(self._patience.start):
                await self._ready
        except TimeoutError:
            said = f"front end {self._number} was not ready after {self._patience.start:g} s"
            raise ConfigurationError(said) from None

    async def gone(self) -> None:
        """Return once it has ended, or hangs. One silence says nothing: if this process stood still itself, it has not
        read yet what was said meanwhile."""
        silences = 0
        while silences < 2 and not self.lost.is_set():
            self._spoke = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience.silence):
                    await self.lost.wait()
            silences = 0 if self._spoke else silences + 1
        self._hangs = not self.lost.is_set()

    def refuse_calls(self) -> None:
        """Those that come from now on."""
        self._relayed.draining = True

    async def drain(self, grace: float) -> None:
        """Let it refuse what is new and finish what there is within `grace` seconds, and then end by itself."""
        if self.lost.is_set():
            return
        self._relayed.link.send(frames.DRAIN, 0, frames.seconds(grace))
        with suppress(TimeoutError):
            async with asyncio.timeout(grace + self._patience.last_words):
                await self.lost.wait()
        if not self.lost.is_set():
            _logger.warning("front end %s (process %s) did not end in time", self._number, self.pid)

    async def end(self) -> str:
        """Make sure of it, and say how it ended."""
        if self._linked:
            self._relayed.link.abort()
        else:
            self._ours.close()
        reason = await self._started.ended()
        return "hung" if self._hangs else reason

    def log(self, level: int, form: str) -> None:
        """How it is to, from now on."""
        self._relayed.link.send(frames.LOGGING, 0, frames.log(level, form))

    # What it says of itself

    def _on_ready(self, number: int, data: bytes, start: int, end: int) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _on_refused(self, number: int, data: bytes, start: int, end: int) -> None:
        self._refuse(data[start:end].decode())

    def _on_connections(self, number: int, data: bytes, start: int, end: int) -> None:
        self._spoke = True
        self.connections = frames.read_number(data, start)

    def _on_lost(self) -> None:
        self.lost.set()
        self._refuse(f"front end {self._number} ended while it started; its reason is in the log")

    def _refuse(self, why: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(ConfigurationError(why))
            # Nobody waits for it if the start of all of them has been given up: asyncio would complain of that.
            self._ready.exception()


def _launch(common: Common) -> tuple[socket.socket, Started]:
    """With our end of the link. Raises OSError."""
    ours, theirs = socket.socketpair()
    sockets: list[socket.socket] = []
    try:
        with theirs:
            sockets = common.address.sockets()
            return ours, common.launch(theirs, sockets)
    except BaseException:
        ours.close()
        raise
    finally:
        close_all(sockets)
