"""What the servicers need from the rest of the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from offramp_server.endpoints import EndpointInfo, IndexEntry, RouteInfo
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.routing.overrides import RouteChange, SettingsUpdate
from offramp_server.telemetry.stats import Stats


class Serving(Protocol):
    """The server behind the wire. Every method may raise an OfframpError."""

    @property
    def live(self) -> bool: ...

    @property
    def ready(self) -> bool:
        """False while starting or draining."""
        ...

    @property
    def stats(self) -> Stats: ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Validates against the model, runs it. Cancelling the awaiting task cancels the work."""
        ...

    def endpoint(self, name: str, version: str = "") -> EndpointInfo:
        """Raises NotFound or Unavailable."""
        ...

    def index(self) -> list[IndexEntry]: ...

    def model_ready(self, name: str, version: str = "") -> bool: ...

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...

    @property
    def live_routes(self) -> RouteControl: ...


class RouteControl(Protocol):
    """The routes and their settings (`offramp_server.routing.live`)."""

    def routes(self) -> list[RouteInfo]: ...

    def route(self, name: str) -> RouteInfo:
        """Raises NotFound."""
        ...

    async def update(self, name: str, update: SettingsUpdate, by: str) -> RouteInfo:
        """All of it or nothing. Raises NotFound, Conflict, InvalidRequest or FailedPrecondition."""
        ...

    async def changes(self, name: str, before: int | None, limit: int) -> Sequence[RouteChange]:
        """The latest first, of those numbered below `before`. Raises NotFound."""
        ...

    def watch(self) -> AsyncGenerator[list[RouteInfo], None]:
        """All routes now and after each change. Raises Unavailable once the server drains."""
        ...


class LogControl(Protocol):
    """Logging as it can be changed while the server runs (`offramp_server.telemetry.logs`)."""

    @property
    def level(self) -> int:
        """The threshold, as a number of the `logging` module."""
        ...

    @property
    def format(self) -> str:
        """text or json."""
        ...

    def configure(self, *, level: int | None = None, format: str | None = None) -> None:
        """Takes effect at once; None leaves a setting as it is. Raises InvalidRequest for a value that is none."""
        ...


class TraceControl(Protocol):
    """Tracing as it can be changed while the server runs (`offramp_server.telemetry.tracing`)."""

    @property
    def enabled(self) -> bool:
        """Triton's level: TIMESTAMPS if true, OFF if false."""
        ...

    @property
    def rate(self) -> int:
        """One request in this many is traced; 0: only those whose callers want it."""
        ...

    def configure(self, *, enabled: bool | None = None, rate: int | None = None) -> None:
        """Takes effect at once; None leaves a setting as it is.

        Raises InvalidRequest for a value that is none, FailedPrecondition if this server cannot trace.
        """
        ...

    def request(
        self, metadata: Iterable[tuple[str, str | bytes]], name: str, request_id: str = ""
    ) -> AbstractContextManager[object] | None:
        """To be held around a request that has just arrived for that model or route; None if it is not traced."""
        ...
