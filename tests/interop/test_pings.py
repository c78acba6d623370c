"""Keepalive of clients: what is polite is answered for ever, and what is not ends the connection.

The pings by which gRPC's core measures a connection are many more, and come with every large message of this suite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from calling import Call, Channel, Client, Opening
from drivers import Missing
from echo import TRANSPORTS, EchoServer
from echo_server import SERVICE
from eventually import eventually
from forwarder import forwarding
from offramp_server.transport.interface import Code

from clients import ANY_CALL, CANDIDATES, CORE_OPTIONS

# PING with the head of its frame, and how many of them it takes: more than are forgiven.
PING_BYTES = 17
ENOUGH = 5


def pinging(client: Client, target: str, interval: float) -> Channel:
    """A connection that is kept alive so often, in seconds, whether or not there is a call."""
    options = {
        "grpc.keepalive_time_ms": round(interval * 1000),
        "grpc.keepalive_timeout_ms": 60_000,
        "grpc.keepalive_permit_without_calls": 1,
        # gRPC's core holds its pings back otherwise.
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_time_between_pings_ms": 1,
        "grpc.http2.min_sent_ping_interval_without_data_ms": 1,
    }
    return client.open(Opening(target, options=options))


@pytest.fixture
def pinging_clients(made_clients: Callable[[str], Client]) -> dict[str, Client]:
    """Those that this machine has and whose interval can be set, by name."""
    found = {}
    for name, candidate in CANDIDATES.items():
        if not {CORE_OPTIONS, ANY_CALL} & candidate.lacks.keys():
            with suppress(Missing):
                found[name] = made_clients(name)
    return found


async def test_keepalive_that_keeps_the_interval_is_answered_and_what_is_faster_ends_the_connection(
    pinging_clients: dict[str, Client], echo_servers: Callable[[str], EchoServer]
) -> None:
    """All of them at a time: gRPC's core pings once a second at most."""
    silences = [
        silence(client, echo_servers(transport), f"{listener} {transport} {name}", listener)
        for transport in TRANSPORTS
        for name, client in pinging_clients.items()
        for listener in ("pings", "plain")
    ]
    ended = dict(await asyncio.gather(*silences))
    for key, code in ended.items():
        # grpc-js says of the server's reason, ENHANCE_YOUR_CALM, what gRPC says of it where it ends a single call.
        away = {Code.RESOURCE_EXHAUSTED} if key.endswith("grpc-js") else {Code.UNAVAILABLE}
        assert code in ({Code.OK} if key.startswith("pings") else away), key


async def silence(client: Client, echo: EchoServer, key: str, listener: str) -> tuple[str, Code]:
    """A call of which the server says nothing while the client pings; how it ends, once there were
    enough pings where they are allowed."""
    with forwarding(echo.targets[listener]) as way:
        channel = pinging(client, way.target, 0.2)
        pending = channel.begin(Call(SERVICE + "wait", (key.encode(),)))
        await eventually(lambda: echo.count(f"{key} begun") == 1)
        before = way.to_server
        if listener == "pings":
            await eventually(lambda: pending.future.done() or way.to_server - before >= ENOUGH * PING_BYTES)
        else:
            await eventually(pending.future.done)
        await asyncio.to_thread(echo.ask, "release", key.encode())
        ended = await asyncio.to_thread(pending.outcome)
        assert (await asyncio.to_thread(channel.begin(Call(SERVICE + "unary")).outcome)).code is Code.OK
        channel.close()
        return key, ended.code
