"""Handlers of all kinds that do what the first byte of a message asks of them, and what their callers may expect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fuzz_client import MAX_MESSAGE_BYTES
from google.protobuf.message import DecodeError
from offramp_common.grpc_framing.messages import MessageBytes
from offramp_server.transport.interface import CallContext, CallFailed, Code, Method

# See BEHAVIOURS of `fuzz_client`: (w)ait until the fuzzer says so, do so (s)tubbornly whatever happens, (f)ail, have a
# (b)ug, (d)o not parse, answer at (L)ength, at more (l)ength than is allowed, in the (m)iddle, (h)op through turns of
# the loop, stream (2) or 2(4); everything else is told back.
_LENGTHS = {ord("L"): 30_000, ord("l"): MAX_MESSAGE_BYTES + 1, ord("m"): 2000}
_COUNTS = {ord("2"): 2, ord("4"): 24}
_STREAMED_BYTES = 9000
FAILURE = "not here: 100 % \u00fc\n"


class Intended(Exception):
    """A handler's bug."""


class Services:
    def __init__(self) -> None:
        # What handlers wait for, in the order in which they came to it.
        self.gates: list[asyncio.Future[None]] = []
        # How often any has come to one.
        self.waits = 0
        # Handlers that have not come to their end.
        self.running = 0
        # Of these, who was cancelled and does not mind.
        self.stubborn = 0

    def open(self, place: int) -> None:
        if self.gates:
            gate = self.gates.pop(place % len(self.gates))
            if not gate.done():
                gate.set_result(None)

    async def swift(self, request: bytes, context: CallContext) -> bytes:
        self.running += 1
        try:
            _tell_back(context)
            return await self._act(request)
        finally:
            self.running -= 1

    async def client(self, requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        self.running += 1
        try:
            _tell_back(context)
            count = size = 0
            async for request in requests:
                size += len(await self._act(request))
                count += 1
            return b"%d messages, %d bytes" % (count, size)
        finally:
            self.running -= 1

    async def server(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            _tell_back(context)
            for answer in _streamed(request):
                yield await self._act(answer)
        finally:
            self.running -= 1

    async def bidi(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            _tell_back(context)
            async for request in requests:
                yield await self._act(request)
        finally:
            self.running -= 1

    async def _act(self, request: bytes) -> bytes:
        asked = request[:1]
        if asked == b"w":
            await self._gate()
        elif asked == b"s":
            try:
                await self._gate()
            except asyncio.CancelledError:
                self.stubborn += 1
                try:
                    await self._gate()
                finally:
                    self.stubborn -= 1
        elif asked == b"h":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return _outcome(request)

    async def _gate(self) -> None:
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        self.waits += 1
        await gate

    def methods(self) -> dict[str, Method]:
        def of(name: str, handler: Callable[..., Any], client: bool, server: bool, swift: bool) -> Method:
            return Method(name, f"/s/{name}", "fuzz.Bytes", _parse, client, server, handler, swift)

        methods = (
            of("swift", self.swift, False, False, True),
            of("task", self.swift, False, False, False),
            of("client", self.client, True, False, False),
            of("client_swift", self.client, True, False, True),
            of("server", self.server, False, True, False),
            of("bidi", self.bidi, True, True, False),
        )
        return {method.path: method for method in methods}


def _parse(message: MessageBytes) -> bytes:
    if message[:1] == b"d":
        raise DecodeError("as asked")
    return bytes(message)


def _tell_back(context: CallContext) -> None:
    context.set_trailing("k", str(context.metadata.get("k", "")))


def _outcome(request: bytes) -> bytes:
    """Raises what the handler does."""
    asked = request[0] if request else 0
    if asked == ord("f"):
        raise CallFailed(Code.NOT_FOUND, FAILURE)
    if asked == ord("b"):
        raise Intended
    return b"a" * _LENGTHS[asked] if asked in _LENGTHS else request


def _streamed(request: bytes) -> Sequence[bytes]:
    count = _COUNTS.get(request[0] if request else 0, 1)
    return (request,) if count == 1 else (request[:1] + bytes(_STREAMED_BYTES),) * count


def expected(path: str, messages: Sequence[bytes]) -> tuple[Code, list[bytes]]:
    """What a call that is as it should be is answered."""
    said: list[bytes] = []
    try:
        for message in messages:
            parts = _streamed(_parsed(message)) if path == "server" else (_parsed(message),)
            for part in parts:
                answer = _outcome(part)
                if len(answer) > MAX_MESSAGE_BYTES and not path.startswith("client"):
                    raise CallFailed(Code.RESOURCE_EXHAUSTED, "too long")
                said.append(answer)
    except CallFailed as failure:
        return failure.code, said if path in ("server", "bidi") else []
    except Intended:
        return Code.INTERNAL, said if path in ("server", "bidi") else []
    if path.startswith("client"):
        return Code.OK, [b"%d messages, %d bytes" % (len(messages), sum(map(len, said)))]
    return Code.OK, said


def _parsed(message: bytes) -> bytes:
    try:
        return _parse(message)
    except DecodeError:
        raise CallFailed(Code.INVALID_ARGUMENT, "does not parse") from None
