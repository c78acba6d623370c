"""SIGTERM while every client calls: what was begun is answered, what comes too late is told so, and it ends well."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from calling import Call, Channel, Client, Opening
from drivers import Missing
from echo import TRANSPORTS, echoing
from echo_server import SERVICE
from eventually import eventually
from offramp_server.transport.interface import Code
from serve import infer, offramp_serve

from clients import AFTER_GOAWAY, ANY_CALL, CANDIDATES

# Loops of a client, each with one call at a time.
_LOOPS = 4
# Calls that it has made before the server is told to end.
_UNDER_WAY = 20


@dataclass
class Load:
    """Calls in loops, each of which ends with the first that does not end well."""

    channel: Channel
    call: Call
    ends: Counter[Code] = field(default_factory=Counter)

    def start(self) -> None:
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._loop) for _ in range(_LOOPS)]
        for thread in self._threads:
            thread.start()

    def _loop(self) -> None:
        code = Code.OK
        while code is Code.OK:
            code = self.channel.begin(self.call).outcome().code
            with self._lock:
                self.ends[code] += 1

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def loads(made_clients: Callable[[str], Client], target: str, call: Call, needs: set[str]) -> dict[str, Load]:
    """By the names of the clients that this machine has."""
    found = {}
    for name, candidate in CANDIDATES.items():
        if needs & candidate.lacks.keys():
            continue
        try:
            found[name] = Load(made_clients(name).open(Opening(target)), call)
        except Missing:
            continue
        found[name].start()
    return found


async def finish(running: dict[str, Load]) -> None:
    for load in running.values():
        await asyncio.to_thread(load.join)
        await asyncio.to_thread(load.channel.close)


async def under_way(running: dict[str, Load]) -> None:
    await eventually(lambda: all(load.ends[Code.OK] >= _UNDER_WAY for load in running.values()))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_was_begun_is_answered_and_what_comes_later_is_unavailable(
    made_clients: Callable[[str], Client], transport: str, tmp_path: Path
) -> None:
    with echoing(transport, tmp_path) as server:
        running = loads(made_clients, server.targets["plain"], Call(SERVICE + "unary", (b"1",)), {ANY_CALL})
        await under_way(running)
        # One of each client that ends when nothing new is taken any more.
        waiting = {
            name: load.channel.begin(Call(SERVICE + "wait", (b"key",)))
            for name, load in running.items()
            if AFTER_GOAWAY not in CANDIDATES[name].lacks
        }
        await eventually(lambda: server.count("key begun") == len(waiting))
        server.tell(signal.SIGTERM)
        for load in running.values():
            await asyncio.to_thread(load.join)
        server.tell(signal.SIGUSR1)
        for name, pending in waiting.items():
            assert (await asyncio.to_thread(pending.outcome)).answers == (b"released",), name
        answered = await asyncio.to_thread(server.answered)
        await finish(running)
    assert_told(running, transport)
    # Nobody was answered without hearing of it.
    lost = answered - sum(load.ends[Code.OK] for load in running.values())
    assert lost <= sum(_LOOPS for name in running if AFTER_GOAWAY in CANDIDATES[name].lacks)
    assert lost >= 0


def assert_told(running: dict[str, Load], transport: str) -> None:
    """Each loop of each client came to its end by a call that was refused."""
    # grpcio's server cancels a call that crosses its shutdown on the way; the native one refuses its stream, which lets
    # clients call elsewhere by themselves.
    late = {Code.UNAVAILABLE, Code.CANCELLED} if transport == "grpcio" else {Code.UNAVAILABLE}
    for name, load in running.items():
        assert load.ends.keys() - {Code.OK} <= late, name


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_server_of_models_drains_under_load(
    made_clients: Callable[[str], Client], transport: str, tmp_path: Path
) -> None:
    with offramp_serve(transport, tmp_path) as server:
        running = loads(made_clients, server.grpc, infer(), set())
        await under_way(running)
        assert await asyncio.to_thread(server.stop) == 0
        await finish(running)
        assert "Traceback" not in server.logged()
    assert_told(running, transport)
