"""A small server of its own process, on either transport or with two front ends, of every kind of call that gRPC has.

Prints one line of JSON, {listener: target}, when it listens. SIGTERM drains it; it says then how many calls of
`Echo.unary` were answered, and exits with 0. SIGUSR1 lets all calls go on that wait.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from offramp_server.transport.grpcio import GrpcioTransport
from offramp_server.transport.interface import (
    CallContext,
    CallFailed,
    Code,
    ListenOptions,
    Method,
    Service,
    TlsMaterial,
    Transport,
)
from offramp_server.transport.native.transport import NativeTransport
from offramp_server.transport.relay.transport import RelayTransport
from open_inference import grpc_predict_v2_pb2 as pb

SERVICE = "/interop.Echo/"
FRONT_ENDS = "front-ends"
# Trailers that a call asks for begin like this in its metadata.
SEND_BACK = "back-"
# What a call that drains may take. Seconds.
_GRACE = 60.0
# Of metadata.
METADATA_BYTES = 8192
# Of the listener whose clients may ping this often. Seconds.
PING_INTERVAL = 0.05


class Echo:
    """The methods. Messages are bytes, and JSON where more has to be said."""

    def __init__(self) -> None:
        self.answered = 0
        self._counts: Counter[str] = Counter()
        self._released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def unary(self, request: bytes, context: CallContext) -> bytes:
        self.answered += 1
        return request

    async def describe(self, request: bytes, context: CallContext) -> bytes:
        """What this side sees of the call."""
        for key, value in context.metadata.items():
            if key.startswith(SEND_BACK):
                context.set_trailing(key.removeprefix(SEND_BACK), value)
        now = asyncio.get_running_loop().time()
        seen = {
            "metadata": {key: as_text(value) for key, value in context.metadata.items()},
            "remaining": None if context.deadline is None else context.deadline - now,
            "peer": context.peer,
            "identity": context.identity,
        }
        return json.dumps(seen).encode()

    async def fail(self, request: bytes, context: CallContext) -> bytes:
        raise _failure(request)

    async def fail_later(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """After two answers."""
        yield b"1"
        yield b"2"
        raise _failure(request)

    async def wait(self, request: bytes, context: CallContext) -> bytes:
        """Until somebody calls `release` with the same message."""
        async for answer in self.wait_stream(request, context):
            last = answer
        return last

    async def wait_stream(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """An answer at once, and another one when it is released."""
        key = request.decode()
        self._counts[f"{key} begun"] += 1
        try:
            yield b"waiting"
            await self._released[key].wait()
            yield b"released"
        except (asyncio.CancelledError, GeneratorExit):
            self._counts[f"{key} cancelled"] += 1
            raise
        finally:
            self._counts[f"{key} ended"] += 1

    def release_all(self) -> None:
        for released in self._released.values():
            released.set()

    async def release(self, request: bytes, context: CallContext) -> bytes:
        self._released[request.decode()].set()
        return b""

    async def counts(self, request: bytes, context: CallContext) -> bytes:
        return json.dumps(self._counts).encode()

    async def collect(self, requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        """All of them, joined."""
        return b"".join([request async for request in requests])

    async def repeat(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """{"times": N, "size": BYTES}."""
        wanted = json.loads(request)
        for number in range(wanted["times"]):
            yield bytes([number % 256]) * wanted["size"]

    async def each(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        """One by one, as they came."""
        async for request in requests:
            yield request


def as_text(value: str | bytes) -> Any:
    return value if isinstance(value, str) else {"base64": base64.b64encode(value).decode()}


def as_value(said: Any) -> str | bytes:
    return said if isinstance(said, str) else base64.b64decode(said["base64"])


def _failure(request: bytes) -> CallFailed:
    """{"code": N, "message": ..., "trailing": {...}}."""
    said = json.loads(request)
    trailing = {key: as_value(value) for key, value in said["trailing"].items()}
    return CallFailed(Code(said["code"]), said["message"], trailing)


def service(echo: Echo) -> Service:
    def of(name: str, client: bool = False, server: bool = False, swift: bool = False) -> Method:
        return Method(name, SERVICE + name, "bytes", bytes, client, server, getattr(echo, name), swift)

    methods = (
        of("unary", swift=True),
        of("describe"),
        of("fail"),
        of("fail_later", server=True),
        of("wait"),
        of("wait_stream", server=True),
        of("release"),
        of("counts"),
        of("collect", client=True),
        of("repeat", server=True),
        of("each", client=True, server=True),
    )
    return Service("interop.Echo", pb.DESCRIPTOR, methods)


def listeners(folder: Path) -> dict[str, ListenOptions]:
    """`folder` has server.pem, server.key and ca.pem; a socket comes to lie there as well."""
    pair = (folder / "server.pem").read_bytes(), (folder / "server.key").read_bytes()
    plain = ListenOptions("127.0.0.1", 0, max_metadata_bytes=METADATA_BYTES)
    return {
        "plain": plain,
        "ipv6": replace(plain, host="::1"),
        "unix": replace(plain, host=f"unix:{folder / 'echo.sock'}"),
        "tls": replace(plain, tls=TlsMaterial(*pair)),
        "mutual": replace(plain, tls=TlsMaterial(*pair, client_ca=(folder / "ca.pem").read_bytes())),
        "pings": replace(plain, min_ping_interval=PING_INTERVAL),
    }


async def main(kind: str, folder: Path) -> None:
    echo, stop = Echo(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, echo.release_all)
    transports = {
        name: built(kind, service(echo), options)
        for name, options in listeners(folder).items()
        # Each has processes of its own, which take their time to start.
        if kind != FRONT_ENDS or name in ("plain", "tls")
    }
    targets = {}
    for name, transport in transports.items():
        port = await transport.start()
        host = transport_host(listeners(folder)[name].host)
        targets[name] = host if host.startswith("unix:") else f"{host}:{port}"
    print(json.dumps(targets), flush=True)
    await stop.wait()
    await asyncio.gather(*(transport.stop(_GRACE) for transport in transports.values()))
    print(json.dumps({"answered": echo.answered}), flush=True)


def built(kind: str, echo: Service, options: ListenOptions) -> Transport:
    if kind == FRONT_ENDS:
        return RelayTransport([echo], options, 2, (logging.WARNING, "text"))
    return (NativeTransport if kind == "native" else GrpcioTransport)([echo], options)


def transport_host(host: str) -> str:
    return host if host.startswith("unix:") or ":" not in host else f"[{host}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=["native", "grpcio", FRONT_ENDS])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    uvloop.run(main(options.transport, options.folder))
