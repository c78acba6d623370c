"""A call whose handler runs in this process, whatever carries it: its deadline, its cancellation, and its one end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from typing import Any, cast

from offramp_common.grpc_framing.messages import MessageBytes, Packed

from offramp_server.transport.driver import Driven
from offramp_server.transport.handling import failure_of, parsed, serialized
from offramp_server.transport.incoming import Incoming
from offramp_server.transport.interface import CallFailed, Code, Method, Parts

_CUT_OFF = CallFailed(Code.UNAVAILABLE, "the server is shutting down")


class HandledCall(ABC):
    """Runs the handler and is its `CallContext`. Who derives from it knows how to say what came of that."""

    __slots__ = (
        "__weakref__",
        "_driven",
        "_loop",
        "_metadata",
        "_method",
        "_over",
        "_requests",
        "_room",
        "_started",
        "_timer",
        "_trailing",
        "deadline",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, method: Method, timeout: float | None) -> None:
        """`timeout`: seconds from now; None: no limit."""
        self.deadline = None if timeout is None else loop.time() + timeout
        self._loop = loop
        self._method = method
        self._requests = Incoming(self) if method.client_streaming else None
        self._metadata: Mapping[str, str | bytes] | None = None
        self._trailing: list[tuple[str, str | bytes]] = []
        # Its handler has been begun.
        self._started = False
        # There is nothing more to say: it has been answered, or nobody listens.
        self._over = False
        self._driven: Driven | asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Whoever waits for it may send more.
        self._room: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """The head has come."""
        if self._requests is not None:
            self._start(self._requests)

    # What it says

    @abstractmethod
    def _answer(self, message: bytes | Parts) -> None:
        """All of it at once, and the end. Raises CallFailed for one that is too large."""

    @abstractmethod
    async def _send(self, message: bytes | Parts) -> None:
        """One of several; returns when there may be another. Raises CallFailed for one that is too large."""

    @abstractmethod
    def _end_stream(self) -> None:
        """There are no more."""

    @abstractmethod
    def _say(self, failure: CallFailed) -> None:
        """The end, and why. The call is over by then."""

    @abstractmethod
    def _count(self, change: int) -> None:
        """So many handlers more run now."""

    # The handler

    def _start(self, request: Any) -> None:
        """`request`: a message that has been parsed, or one that is to be unpacked before; or an iterator of them."""
        self._started = True
        loop, method = self._loop, self._method
        if self.deadline is not None and self.deadline <= loop.time():
            self._expire()
            return
        self._count(1)
        if method.server_streaming:
            self._as_task(self._answer_stream(request))
        elif method.swift and not isinstance(request, Packed):
            coroutine = cast("Coroutine[Any, Any, Any]", method.handler(request, self))
            self._driven = driven = Driven(coroutine, loop, self._on_answer)
            driven.start()
        else:
            self._as_task(self._answer_once(request))
        if self.deadline is not None and not self._over:
            self._timer = loop.call_at(self.deadline, self._expire)

    def _as_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._driven = task = self._loop.create_task(coroutine)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """It has answered by itself, unless it was cancelled or something is wrong with its answer."""
        self._ended_handler()
        if task.cancelled():
            self._fail(_CUT_OFF)
        elif task.exception() is not None:
            self._fail(failure_of(self._method, cast("BaseException", task.exception())))

    def _on_answer(self, answer: Any, error: BaseException | None) -> None:
        self._ended_handler()
        if self._over:
            return
        if error is None:
            try:
                self._answer(serialized(answer))
            except Exception as unfit:
                self._fail(failure_of(self._method, unfit))
        else:
            self._fail(_CUT_OFF if isinstance(error, asyncio.CancelledError) else failure_of(self._method, error))

    async def _answer_once(self, request: Any) -> None:
        try:
            request = await self._unpacked(request)
            self._answer(serialized(await cast("Coroutine[Any, Any, Any]", self._method.handler(request, self))))
        except Exception as error:
            self._fail(failure_of(self._method, error))

    async def _answer_stream(self, request: Any) -> None:
        try:
            request = await self._unpacked(request)
            # Closed here and not by the garbage collector, so that a cancelled stream has let go of its work at once.
            async with aclosing(cast("Any", self._method.handler(request, self))) as answers:
                async for answer in answers:
                    await self._send(serialized(answer))
        except Exception as error:
            self._fail(failure_of(self._method, error))
        else:
            self._end_stream()

    async def _unpacked(self, request: Any) -> Any:
        """What is large is unpacked beside the event loop. Raises CallFailed."""
        if isinstance(request, Packed):
            return self.parse(await asyncio.to_thread(request.unpacked))
        return request

    def _ended_handler(self) -> None:
        self._driven = None
        self._count(-1)

    def _cancel(self) -> None:
        if self._driven is not None:
            self._driven.cancel()

    def _expire(self) -> None:
        if not self._over:
            self._fail(CallFailed(Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"))

    # The end

    def drop(self) -> None:
        """Nobody waits for it any more."""
        if not self._over:
            self._finish()
            self._cancel()

    def shut_down(self) -> None:
        """Give it up, and say so."""
        if not self._over:
            self._fail(_CUT_OFF)

    def _fail(self, failure: CallFailed) -> None:
        if self._over:
            return
        self._finish()
        self._say(failure)
        self._cancel()

    def _finish(self) -> None:
        self._over = True
        # Both know this call; without this only the garbage collector would free what they keep.
        if self._requests is not None:
            self._requests.drop()
            self._requests = None
        if self._timer is not None:
            self._timer.cancel()
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # What a handler may ask

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Raises CallFailed for what no metadata is."""
        if self._metadata is None:
            self._metadata = self._read_metadata()
        return self._metadata

    @abstractmethod
    def _read_metadata(self) -> Mapping[str, str | bytes]: ...

    @property
    @abstractmethod
    def peer(self) -> str: ...

    @property
    @abstractmethod
    def identity(self) -> str | None: ...

    def set_trailing(self, key: str, value: str | bytes) -> None:
        self._trailing.append((key, value))

    # Its requests

    def parse(self, message: MessageBytes) -> Any:
        """Raises CallFailed."""
        return parsed(self._method, message)

    @abstractmethod
    def give_back(self, size: int) -> None:
        """See `Reader`."""
