"""The channels of our own SDK that are not grpcio's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from calling import Call, Channel, Opening, Outcome, Pending, pairs_of
from offramp_client import TLS
from offramp_client._connection import connection_to
from offramp_client._native.opening import Native
from offramp_common.grpc_framing.status import CallFailed
from offramp_server.transport.interface import Code
from python_clients import LoopChannel, LoopClient

# Threads that wait for a call each.
_THREADS = 700
_MOST_BYTES = 2**30


def _native(opening: Opening) -> Native:
    said = opening.tls
    tls = None if said is None else TLS(ca=said.ca, certificate=said.certificate, key=said.key)
    return Native(connection_to(opening.target, tls, None, None, _MOST_BYTES, allow_insecure_token=False))


def _said(call: Call) -> dict[str, Any]:
    return {"timeout": call.timeout, "metadata": call.metadata}


def _failed(failure: CallFailed, answers: Iterable[bytes]) -> Outcome:
    return Outcome(failure.code, failure.message, tuple(answers), trailing=pairs_of(failure.trailing.items()))


class OfframpBlockingClient:
    """`offramp_client.Client(..., transport="native")`."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS)

    def open(self, opening: Opening) -> Channel:
        return _BlockingChannel(opening, self._threads)

    def close(self) -> None:
        self._threads.shutdown()


class _BlockingChannel:
    def __init__(self, opening: Opening, threads: ThreadPoolExecutor) -> None:
        self._channel = _native(opening).blocking_channel()
        self._threads = threads

    def begin(self, call: Call) -> Pending:
        if call.kind == "unary":
            return Pending(self._threads.submit(self._ask, call), _nothing)
        stream = self._stream(call)
        future: Future[Outcome] = self._threads.submit(_read, stream, call)
        return Pending(future, stream.cancel)

    def _stream(self, call: Call) -> Any:
        if call.kind == "server_stream":
            return self._channel.unary_stream(call.path)(call.messages[0], **_said(call))
        return self._channel.stream_stream(call.path)(iter(call.messages), **_said(call))

    def _ask(self, call: Call) -> Outcome:
        try:
            return Outcome(Code.OK, "", (bytes(self._channel.unary_unary(call.path)(call.messages[0], **_said(call))),))
        except CallFailed as failure:
            return _failed(failure, ())

    def close(self) -> None:
        self._channel.close()


def _nothing() -> None:
    """A blocking call ends with its deadline or its client."""


def _read(stream: Any, call: Call) -> Outcome:
    answers: list[bytes] = []
    try:
        for answer in stream:
            answers.append(bytes(answer))
            if len(answers) == call.cancel_after_answers:
                stream.cancel()
    except CallFailed as failure:
        return _failed(failure, answers)
    return Outcome(Code.OK, "", tuple(answers))


class OfframpAsyncioClient(LoopClient):
    """`offramp_client.aio.Client(..., transport="native")`."""

    async def _open(self, opening: Opening) -> Channel:
        return _AsyncioChannel(opening, self.loop)


class _AsyncioChannel(LoopChannel):
    def __init__(self, opening: Opening, loop: Any) -> None:
        super().__init__(loop)
        self._channel = _native(opening).asyncio_channel()

    async def make(self, call: Call) -> Outcome:
        answers: list[bytes] = []
        try:
            if call.kind == "unary":
                answers.append(bytes(await self._channel.unary_unary(call.path)(call.messages[0], **_said(call))))
            else:
                await self._read(call, answers.append)
        except CallFailed as failure:
            return _failed(failure, answers)
        return Outcome(Code.OK, "", tuple(answers))

    async def _read(self, call: Call, take: Callable[[bytes], None]) -> None:
        if call.kind == "server_stream":
            stream = self._channel.unary_stream(call.path)(call.messages[0], **_said(call))
        else:
            stream = self._channel.stream_stream(call.path)(_each(call.messages), **_said(call))
        taken = 0
        async for answer in stream:
            take(bytes(answer))
            taken += 1
            if taken == call.cancel_after_answers:
                stream.cancel()

    async def leave(self) -> None:
        await self._channel.close()


async def _each(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
