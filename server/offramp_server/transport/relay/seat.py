"""A place for one front end: whoever leaves it before the server ends is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from offramp_server.errors import ConfigurationError
from offramp_server.transport.relay.running import Common, RunningFrontEnd

_logger = logging.getLogger("offramp.transport")


class Seat:
    """The front ends of one number, one after the other."""

    def __init__(self, number: int, common: Common, restarts: Counter[str]) -> None:
        """In `restarts` those are counted that had to be replaced, by how they ended."""
        self.number = number
        self._common = common
        self._restarts = restarts
        self._front_end: RunningFrontEnd | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """None: it is being started again, or is no process of its own."""
        return None if self._front_end is None else self._front_end.pid

    @property
    def connections(self) -> int:
        return 0 if self._front_end is None else self._front_end.connections

    async def open(self) -> None:
        """Return once it listens. Raises ConfigurationError if it cannot."""
        front_end = await self._start()
        self._keeping = asyncio.create_task(self._keep(front_end), name=f"front end {self.number}")

    def refuse_calls(self) -> None:
        """Those that come from now on."""
        if self._front_end is not None:
            self._front_end.refuse_calls()

    async def close(self, grace: float) -> None:
        """Let it refuse what is new and finish what there is within `grace` seconds, and see it end."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        front_end, self._front_end = self._front_end, None
        if front_end is not None:
            await front_end.drain(grace)
            await front_end.end()

    def log(self, level: int, form: str) -> None:
        """From now on."""
        if self._front_end is not None:
            self._front_end.log(level, form)

    async def _start(self) -> RunningFrontEnd:
        """Raises ConfigurationError."""
        try:
            front_end = RunningFrontEnd(self.number, self._common)
        except OSError as error:
            raise ConfigurationError(f"front end {self.number} cannot be started: {error.strerror}") from error
        try:
            await front_end.ready()
        except BaseException:
            await front_end.end()
            raise
        self._front_end = front_end
        return front_end

    async def _keep(self, front_end: RunningFrontEnd) -> None:
        patience, clock = self._common.patience, asyncio.get_running_loop().time
        pause = patience.first_pause
        while True:
            since = clock()
            await front_end.gone()
            self._front_end = None
            reason = await front_end.end()
            self._restarts[reason] += 1
            said = "front end %s (process %s) ended: %s; its connections are lost, and it is started again"
            _logger.warning(said, self.number, front_end.pid, reason)
            if clock() - since > patience.longest_pause:
                pause = patience.first_pause
            front_end, pause = await self._started_again(pause)

    async def _started_again(self, pause: float) -> tuple[RunningFrontEnd, float]:
        """After so many seconds, and as often as it takes. With the pause before the next time."""
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._common.patience.longest_pause)
            try:
                return await self._start(), pause
            except ConfigurationError as error:
                _logger.warning("front end %s: %s; it is tried again in %g s", self.number, error, pause)
