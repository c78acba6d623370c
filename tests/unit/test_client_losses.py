"""What our own channels make of connections that end, stop, or are replaced while calls are in flight."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from eventually import PATIENCE, eventually
from http2_peer import data
from offramp_client import AsyncClient, InferRequest, KeepAlive, errors
from offramp_client._native.addresses import addresses_of
from offramp_client._native.blocking_channel import Channel
from offramp_client._native.settings import Settings
from offramp_common.grpc_framing.status import CallFailed
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from scripted_calls import METADATA, NATIVE_KINDS, answering, framed, once, well
from scripted_server import HEAD, Conversation, ScriptedServer

X = {"x": np.zeros(1, np.float32)}


@pytest.fixture(params=NATIVE_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _channel(server: ScriptedServer, clock: Callable[[], float]) -> Channel:
    return Channel(Settings(addresses_of(server.target), "a", 1000, KeepAlive(10, 3), clock, random.random))


def _all_of(answers: Any) -> None:
    with suppress(errors.OfframpError):
        list(answers)


async def test_a_new_connection_is_heard_while_somebody_waits_for_the_old_one() -> None:
    """A stream goes on where it is after a server's farewell, for as long as it likes."""

    def draining(server: Conversation) -> None:
        server.greet()
        number = server.request()
        server.say(server.fields(number, *HEAD), data(number, framed(b"")))
        server.say(frames.goaway(number, ErrorCode.NO_ERROR, ""))
        server.until_gone()

    with ScriptedServer(draining, answering(well)) as server, ThreadPoolExecutor(1) as pool:
        client = once("blocking native", server.target, keepalive=None)
        answers = client.watch_routes()
        next(answers)
        pool.submit(_all_of, answers)
        exchange = client._channel._exchange
        await eventually(lambda: exchange._wanted is not None)
        try:
            assert client.server_metadata(timeout=PATIENCE / 4).name == "scripted"
        finally:
            client.close()


def _breaks_the_rules(server: Conversation) -> None:
    server.say(frames.settings(((frames.ENABLE_PUSH, 1),)))


def _says_that_it_will_say_no_more(server: Conversation) -> None:
    server.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("ends", [_breaks_the_rules, _says_that_it_will_say_no_more])
def test_a_server_that_ends_the_connection_and_reads_no_more_is_not_waited_for(
    kind: str, ends: Callable[[Conversation], None]
) -> None:
    """What is left of the request will never be taken."""
    over = threading.Event()

    def script(server: Conversation) -> None:
        server.greet((frames.INITIAL_WINDOW_SIZE, frames.LARGEST_WINDOW))
        server.say(frames.window_update(0, 2**30))
        server.hear(frames.DATA)
        ends(server)
        over.wait(PATIENCE)

    with ScriptedServer(script) as server, once(kind, server.target, keepalive=None) as client:
        try:
            with pytest.raises(errors.Unavailable):
                client.infer("x", {"x": np.zeros(16_000_000, np.float32)}, timeout=PATIENCE / 4)
        finally:
            over.set()


def test_an_answer_that_came_while_nobody_listened_counts() -> None:
    """Who asked whether the server is there had no more time; who reads a stream takes it between two answers."""
    asked, over, answered = threading.Event(), threading.Event(), threading.Event()

    def script(server: Conversation) -> None:
        server.greet()
        number = server.request()
        message = data(number, framed(b""))
        server.say(server.fields(number, *HEAD), message)
        ping = server.hear(frames.PING)
        asked.set()
        assert over.wait(PATIENCE)
        server.say(frames.ping(ping.payload, ack=True), message)
        answered.set()
        server.until_gone()

    passed = 0.0
    with ScriptedServer(script) as server:
        channel = _channel(server, lambda: time.monotonic() + passed)
        answers = channel.unary_stream("/s/m")(b"", timeout=None, metadata=())
        next(answers)
        passed += 10
        while not asked.is_set():
            with pytest.raises(CallFailed, match="deadline"):
                channel.unary_unary("/s/m")(b"", timeout=0.1, metadata=())
        over.set()
        assert answered.wait(PATIENCE)
        passed += 3
        assert next(answers) == b""
        channel.close()


def test_a_process_without_threads_to_spare_connects_when_it_has_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "offramp-connect":
            raise RuntimeError("can't start new thread")
        start(thread)

    passed = 0.0
    with ScriptedServer(answering(well)) as server:
        channel = _channel(server, lambda: time.monotonic() + passed)
        ask = channel.unary_unary("/s/m")
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CallFailed, match="can't start new thread"):
            ask(b"", timeout=PATIENCE / 4, metadata=())
        monkeypatch.undo()
        passed += 1
        assert ask(b"", timeout=PATIENCE / 4, metadata=()) == METADATA
        channel.close()


class _Interrupting:
    """A socket in whose first use Ctrl-C is pressed: what it was given is out, and who gave it does not learn so."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self._pressed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def send(self, said: memoryview) -> int:
        sent = self._real.send(said)
        if not self._pressed:
            self._pressed = True
            raise KeyboardInterrupt
        return sent


def test_nothing_is_said_twice_after_an_interruption() -> None:
    """As in a notebook, which lives on."""
    heard: list[int] = []

    def interrupted(server: Conversation) -> None:
        answering(well)(server)
        heard.extend(frame.stream for frame in server.heard if frame.kind == frames.HEADERS)

    with ScriptedServer(interrupted, answering(well)) as server, once("blocking native", server.target) as client:
        assert client.server_metadata().name == "scripted"
        [connection] = client._channel._exchange._connections.values()
        connection.socket = _Interrupting(connection.socket)
        with pytest.raises(KeyboardInterrupt):
            client.server_metadata()
        assert client.server_metadata(timeout=PATIENCE / 4).name == "scripted"
    assert heard == [1, 3]


# Streams whose requests break off


def test_requests_that_are_interrupted_end_their_stream() -> None:
    """Errors are told to the caller by themselves; this is none."""

    def requests() -> Iterator[InferRequest]:
        yield InferRequest("x", X)
        raise SystemExit

    def script(server: Conversation) -> None:
        server.greet()
        server.hear(frames.RST_STREAM)
        server.until_gone()

    with (
        ScriptedServer(script) as server,
        once("blocking native", server.target) as client,
        pytest.raises(errors.Cancelled, match="the iterator of requests was interrupted"),
    ):
        list(client.infer_stream(requests(), timeout=PATIENCE / 4))


async def test_requests_that_are_cancelled_end_their_stream() -> None:
    """As by waiting for something that somebody else has cancelled."""

    async def requests() -> AsyncIterator[InferRequest]:
        yield InferRequest("x", X)
        raise asyncio.CancelledError

    def script(server: Conversation) -> None:
        server.greet()
        server.hear(frames.RST_STREAM)
        server.until_gone()

    with ScriptedServer(script) as server:
        async with AsyncClient(server.target, transport="native") as client:
            with pytest.raises(errors.Cancelled, match="the iterator of requests was interrupted"):
                await anext(client.infer_stream(requests(), timeout=PATIENCE / 4))
