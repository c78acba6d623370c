"""Services on a port that several processes serve: docs/adr/0017 says how, and what it costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from offramp_server.transport.interface import HasMethods, ListenOptions
from offramp_server.transport.listening import SharedAddress
from offramp_server.transport.native.limits import NativeLimits
from offramp_server.transport.relay.forwarding import MethodKind
from offramp_server.transport.relay.hello import Hello
from offramp_server.transport.relay.processes import Launch, launch_process
from offramp_server.transport.relay.running import Common, Patience
from offramp_server.transport.relay.seat import Seat


class RelayTransport:
    """Front ends carry calls and hand them over; handlers run here. Build and use it on the event loop that serves."""

    def __init__(
        self,
        services: Iterable[HasMethods],
        options: ListenOptions,
        front_ends: int,
        log: tuple[int, str],
        launch: Launch = launch_process,
        patience: Patience | None = None,
    ) -> None:
        """`log`: level and form of the lines of front ends."""
        # How front ends ended that had to be started again.
        self.restarts: Counter[str] = Counter()
        self._options = options
        self._methods = [method for service in services for method in service.methods]
        self._front_ends = front_ends
        self._log = log
        self._launch = launch
        self._patience = patience or Patience()
        self._address: SharedAddress | None = None
        self._seats: list[Seat] = []

    @property
    def seats(self) -> Sequence[Seat]:
        """A place for each front end, whether one is there or is being started again."""
        return self._seats

    async def start(self) -> int:
        address = self._address = SharedAddress(self._options.host, self._options.port)
        common = Common(self._methods, address, self._hello, self._launch, self._patience)
        self._seats = [Seat(number, common, self.restarts) for number in range(1, self._front_ends + 1)]
        opened = await asyncio.gather(*(seat.open() for seat in self._seats), return_exceptions=True)
        errors = [error for error in opened if error is not None]
        if errors:
            await self.stop(0)
            # They have the same reason, mostly.
            raise errors[0]
        return address.port

    async def stop(self, grace: float) -> None:
        if self._address is not None:
            self._address.leave_path()
        for seat in self._seats:
            seat.refuse_calls()
        await asyncio.gather(*(seat.close(grace) for seat in self._seats))
        self._seats.clear()
        if self._address is not None:
            self._address.close()

    def configure_log(self, level: int, form: str) -> None:
        """Of the front ends that there are and of those to come."""
        self._log = level, form
        for seat in self._seats:
            seat.log(level, form)

    def _hello(self) -> Hello:
        kinds = (MethodKind(each.path, each.client_streaming, each.server_streaming) for each in self._methods)
        # Together they may hold what one process may, but each has room for what a client may send.
        share = NativeLimits().max_buffered_bytes // self._front_ends
        max_buffered_bytes = max(share, 2 * self._options.max_message_bytes)
        return Hello(tuple(kinds), self._options, max_buffered_bytes, self._patience.silence / 3, *self._log)
