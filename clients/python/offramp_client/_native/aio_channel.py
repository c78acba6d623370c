"""The asyncio channel: what `offramp_client.aio.Client` needs of grpc.aio's, on HTTP/2 of our own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeAlias

from offramp_common.grpc_framing.messages import MessageBytes

from offramp_client._native.aio_calls import StreamCall, UnaryCall
from offramp_client._native.aio_connection import Connection, connected
from offramp_client._native.calls import Call
from offramp_client._native.dispatch import Dispatch
from offramp_client._native.fields import Heads
from offramp_client._native.session import Session
from offramp_client._native.settings import Settings

Metadata: TypeAlias = tuple[tuple[str, str], ...]

# What a connection may take to be closed well. Seconds.
_LAST_WORDS = 1.0


class Channel:
    """Build and use it on one event loop. Its calls raise CallFailed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._dispatch = Dispatch(settings, self._connect)
        self._heads = Heads(settings.authority, settings.tls is not None)
        self._connections: set[Connection] = set()
        self._attempt: asyncio.Task[None] | None = None
        # For the nearest deadline there is.
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = math.inf
        self._gone = asyncio.Event()

    def unary_unary(self, path: str) -> Callable[..., Coroutine[Any, Any, MessageBytes]]:
        async def ask(payload: bytes, *, timeout: float | None, metadata: Metadata) -> MessageBytes:
            block = self._heads.block(path, metadata)
            call = UnaryCall(self._dispatch, block, payload, self._deadline(timeout), server_streaming=False)
            call.answer = self._loop.create_future()
            self._start(call)
            try:
                return await call.answer
            finally:
                if not call.over:
                    call.cancel()

        return ask

    def unary_stream(self, path: str) -> Callable[..., StreamCall]:
        def ask(payload: bytes, *, timeout: float | None, metadata: Metadata) -> StreamCall:
            block = self._heads.block(path, metadata)
            call = StreamCall(self._dispatch, block, payload, self._deadline(timeout), server_streaming=True)
            self._start(call)
            return call

        return ask

    def stream_stream(self, path: str) -> Callable[..., StreamCall]:
        def ask(payloads: AsyncGenerator[bytes, None], *, timeout: float | None, metadata: Metadata) -> StreamCall:
            block = self._heads.block(path, metadata)
            call = StreamCall(self._dispatch, block, None, self._deadline(timeout), server_streaming=True)
            call.requests = payloads
            self._start(call)
            return call

        return ask

    async def close(self) -> None:
        """Cancel what is in flight and give the connections back."""
        self._dispatch.close("the client was closed while the call was in flight")
        if self._attempt is not None:
            self._attempt.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        for connection in list(self._connections):
            connection.close("the client was closed")
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await self._all_gone()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort("the client was closed")

    async def _all_gone(self) -> None:
        while self._connections:
            self._gone.clear()
            await self._gone.wait()

    # Calls

    def _start(self, call: Call) -> None:
        self._dispatch.start(call)
        if call.deadline < self._expires_at:
            self._watch(call.deadline)

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._settings.clock() + timeout

    def _watch(self, deadline: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        self._expiry = self._loop.call_later(max(0.0, deadline - self._settings.clock()), self._expire)

    def _expire(self) -> None:
        """One timer for all calls: most of them are over long before it."""
        self._expiry, self._expires_at = None, math.inf
        nearest = self._dispatch.expire(self._settings.clock())
        if nearest < math.inf:
            self._watch(nearest)

    # Connections

    def _connect(self) -> None:
        self._attempt = self._loop.create_task(self._try_to_connect())

    async def _try_to_connect(self) -> None:
        until = self._loop.time() + self._settings.connect_timeout
        try:
            async with asyncio.timeout_at(until):
                connection = await connected(self, self._settings)
        except TimeoutError:
            self._dispatch.on_unreachable(f"no connection after {self._settings.connect_timeout:g} s")
        except Exception as error:
            # Whatever it is, those who wait are not to wait for their deadlines.
            self._dispatch.on_unreachable(f"no connection to {error}")
            if not isinstance(error, OSError):
                raise
        else:
            self._loop.call_at(until, connection.demand_greeting)

    def on_connected(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._dispatch.on_connected(connection.session)

    def on_settings(self, session: Session) -> None:
        self._dispatch.on_settings(session)

    def on_goaway(self, session: Session) -> None:
        self._dispatch.on_goaway(session)

    def on_room(self) -> None:
        if self._dispatch.waiting:
            self._dispatch.begin_waiting()

    def on_lost(self, connection: Connection, reason: str) -> None:
        self._connections.discard(connection)
        self._gone.set()
        self._dispatch.on_lost(connection.session, reason)
