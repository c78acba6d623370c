"""One front end from without: started, kept running, and ended with the server."""

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

_START_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS = 0.1
_MOST_BACKOFF_SECONDS = 10.0
# One that ran for so long is worth starting again at once.
_SOUND_SECONDS = 60.0
# What a front end takes to end beyond the grace that calls have: to give up what is left, and to say so.
_LAST_WORDS = 3.0

_logger = logging.getLogger("offramp.transport")


@dataclass(frozen=True, slots=True)
class Common:
    """What all front ends of a server have in common."""

    methods: Sequence[Method]
    address: SharedAddress
    hello: Callable[[], Hello]
    launch: Launch
    # Called when one has to be started again, with how it ended.
    on_end: Callable[[str], None]


class Seat:
    """A place for one front end at a time."""

    def __init__(self, number: int, common: Common) -> None:
        self.number = number
        self._common = common
        self._relayed: Relayed | None = None
        self._started: Started | None = None
        self._ready: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._opened_at = 0.0
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._started is None else self._started.pid

    async def open(self) -> None:
        """Return once it listens. Raises ConfigurationError if it cannot."""
        await self._open()
        self._keeping = asyncio.create_task(self._keep(), name=f"front end {self.number}")

    async def close(self, grace: float) -> None:
        """Let it refuse what is new and finish what there is within `grace` seconds, and see it end."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._relayed is not None and not self._lost.is_set():
            self._relayed.draining = True
            self._relayed.link.send(frames.DRAIN, 0, frames.seconds(grace))
            with suppress(TimeoutError):
                async with asyncio.timeout(grace + _LAST_WORDS):
                    await self._lost.wait()
            if not self._lost.is_set():
                _logger.warning("front end %s (process %s) did not end in time", self.number, self.pid)
        await self._end()

    def log(self, level: int, form: str) -> None:
        """From now on."""
        if self._relayed is not None:
            self._relayed.link.send(frames.LOGGING, 0, frames.log(level, form))

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._ready = loop.create_future()
        try:
            ours = self._launch()
        except OSError as error:
            raise ConfigurationError(f"front end {self.number} cannot be started: {error.strerror}") from error
        common = self._common
        hello = common.hello()
        control = {frames.READY: self._on_ready, frames.REFUSED: self._on_refused}
        relayed = self._relayed = Relayed(common.methods, hello.listen.max_message_bytes, control, self._on_lost)
        await loop.create_unix_connection(lambda: relayed.link, sock=ours)
        relayed.link.send(frames.HELLO, 0, hello.encode())
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready
        except TimeoutError:
            await self._end()
            raise ConfigurationError(f"front end {self.number} was not ready after {_START_SECONDS:g} s") from None
        except BaseException:
            await self._end()
            raise
        self._opened_at = loop.time()

    def _launch(self) -> socket.socket:
        """Our end of the link. Raises OSError."""
        ours, theirs = socket.socketpair()
        sockets: list[socket.socket] = []
        try:
            with theirs:
                sockets = self._common.address.sockets()
                self._started = self._common.launch(theirs, sockets)
        except BaseException:
            ours.close()
            raise
        finally:
            close_all(sockets)
        return ours

    async def _end(self) -> str:
        if self._relayed is not None:
            self._relayed.link.abort()
        return "not_started" if self._started is None else await self._started.ended()

    async def _keep(self) -> None:
        """Start it again whenever it ends."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await self._lost.wait()
            pid = self.pid
            reason = await self._end()
            if asyncio.get_running_loop().time() - self._opened_at > _SOUND_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            _logger.warning(
                "front end %s (process %s) ended: %s; its connections are lost, and it is started again",
                self.number, pid, reason,
            )  # fmt: skip
            self._common.on_end(reason)
            while True:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _MOST_BACKOFF_SECONDS)
                try:
                    await self._open()
                    break
                except ConfigurationError as error:
                    _logger.warning("front end %s: %s; it is tried again in %g s", self.number, error, backoff)

    # What it says of itself

    def _on_ready(self, number: int, data: bytes, start: int, end: int) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _on_refused(self, number: int, data: bytes, start: int, end: int) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConfigurationError(data[start:end].decode()))

    def _on_lost(self) -> None:
        self._lost.set()
        if self._ready is not None and not self._ready.done():
            said = f"front end {self.number} ended while it started; its reason is in the log"
            self._ready.set_exception(ConfigurationError(said))
