"""What is healthy, as the server knows it and orchestrators ask for it. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Iterable


class Health(enum.Enum):
    """The states of grpc.health.v1."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"


class HealthBoard:
    """Health of the server (the empty name and every service's name) and of each model or route by its name.

    Starts as not serving. Whoever watches sees a change as soon as the loop turns.
    """

    def __init__(self) -> None:
        self._server = Health.NOT_SERVING
        self._services = {""}
        self._endpoints: dict[str, Health] = {}
        self._draining = False
        self._closed = False
        self._watchers: set[asyncio.Event] = set()

    def add_services(self, names: Iterable[str]) -> None:
        """Names of gRPC services; each is as healthy as the server."""
        self._services.update(names)
        self._wake()

    def set_server(self, *, serving: bool) -> None:
        self._server = _health(serving)
        self._wake()

    def set_endpoint(self, name: str, *, serving: bool) -> None:
        self._endpoints[name] = _health(serving)
        self._wake()

    def remove_endpoint(self, name: str) -> None:
        self._endpoints.pop(name, None)
        self._wake()

    def drain(self) -> None:
        """From now on nothing is serving, whatever else is set."""
        self._draining = True
        self._wake()

    def close(self) -> None:
        """Drain, and end every watch: an open one would hold up the transport's graceful stop."""
        self._closed = True
        self.drain()

    def status(self, name: str) -> Health | None:
        """None for a name that is neither the server, a service nor an endpoint."""
        known = self._server if name in self._services else self._endpoints.get(name)
        return Health.NOT_SERVING if known is not None and self._draining else known

    async def watch(self, name: str) -> AsyncGenerator[Health | None, None]:
        """The status now and after each change, until `close`. States that nobody had time to read are skipped."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            status = self.status(name)
            yield status
            # The board may have closed while this watcher was told of what was before.
            while changed.is_set() or not self._closed:
                await changed.wait()
                changed.clear()
                before, status = status, self.status(name)
                if status is not before:
                    yield status
        finally:
            self._watchers.discard(changed)

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()


def _health(serving: bool) -> Health:
    return Health.SERVING if serving else Health.NOT_SERVING
