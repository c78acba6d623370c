"""Front ends come and go, and the server notices, says so, and goes on."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import grpc
import grpc.aio
import pytest
from eventually import PATIENCE, eventually_here
from front_ends import ECHO, WAIT, Handlers, Here, launch_here
from offramp_server.errors import ConfigurationError
from offramp_server.transport.interface import ListenOptions, TlsMaterial
from offramp_server.transport.listening import close_all
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.forwarding import MethodKind
from offramp_server.transport.relay.hello import Hello
from offramp_server.transport.relay.processes import Launch, Started
from offramp_server.transport.relay.running import Patience
from offramp_server.transport.relay.transport import RelayTransport
from scheduling_fakes import HandClock, on_hand_clock

LOOPBACK = ListenOptions("127.0.0.1", 0)
HASTY = Patience(first_pause=0.001, longest_pause=0.004)


class Stand:
    """In place of a front end's process."""

    pid = 7

    def __init__(self, link: socket.socket | None = None) -> None:
        self.link = link
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        if self.link is not None:
            self.link.close()

    async def ended(self) -> str:
        self.kill()
        return "signal_9"


class Launches:
    """Starts front ends on this loop, unless it is told to do otherwise the next times (None: not then)."""

    def __init__(self, *others: Launch | OSError | None) -> None:
        self.others = list(others)
        self.here: list[Here] = []

    def __call__(self, link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
        other = self.others.pop(0) if self.others else None
        if isinstance(other, OSError):
            raise other
        if other is not None:
            return other(link, sockets)
        self.here.append(launch_here(link, sockets))
        return self.here[-1]


def ends_at_once(link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
    return Stand()


def says_nothing(link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
    return Stand(link.dup())


def listens_to_nothing(link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
    """It is ready, and does nothing from then on."""
    link.sendall(frames.HEADER.pack(0, frames.READY, 0))
    return Stand(link.dup())


def made(handlers: Handlers, launches: Launches, count: int = 1, patience: Patience = HASTY) -> RelayTransport:
    return RelayTransport([handlers.service()], LOOPBACK, count, (logging.WARNING, "text"), launches, patience)


@asynccontextmanager
async def channel_to(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


async def test_a_front_end_that_ends_takes_its_calls_with_it_and_is_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers, launches = Handlers(), Launches()
    transport = made(handlers, launches)
    port = await transport.start()
    async with channel_to(port) as channel:
        call = channel.unary_unary(WAIT)(b"x")
        await eventually_here(lambda: handlers.running == 1)
        launches.here[0].kill()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await eventually_here(lambda: handlers.running == 0)
        assert await channel.unary_unary(ECHO)(b"x", wait_for_ready=True) == b"x"
    assert len(launches.here) == 2
    assert transport.restarts == {"ended": 1}
    assert "front end 1 (process None) ended: ended" in caplog.text
    await transport.stop(0)


async def test_starting_one_again_is_tried_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    launches = Launches(None, OSError(11, "no processes left"), ends_at_once, ends_at_once)
    transport = made(Handlers(), launches)
    port = await transport.start()
    before = transport.seats[0]
    launches.here[0].kill()
    async with channel_to(port) as channel:
        assert await channel.unary_unary(ECHO)(b"x", wait_for_ready=True) == b"x"
    assert caplog.text.count("it is tried again in") == 3
    assert "front end 1 cannot be started: no processes left" in caplog.text
    assert (transport.seats[0], transport.restarts) == (before, {"ended": 1})
    await transport.stop(0)


async def test_those_that_are_left_go_on(caplog: pytest.LogCaptureFixture) -> None:
    launches = Launches()
    transport = made(Handlers(), launches, count=2, patience=Patience(first_pause=1000))
    port = await transport.start()
    launches.here[0].kill()
    await eventually_here(lambda: sum(transport.restarts.values()) == 1)
    for _ in range(10):
        async with channel_to(port) as channel:
            assert await channel.unary_unary(ECHO)(b"x") == b"x"
    await transport.stop(0)


async def test_nobody_waits_for_one_that_is_being_started() -> None:
    starting: list[socket.socket] = []

    def starts_for_ever(link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
        starting.extend(each.dup() for each in sockets)
        return says_nothing(link, sockets)

    launches = Launches(None, None, starts_for_ever)
    transport = made(Handlers(), launches, count=2)
    port = await transport.start()
    launches.here[0].kill()
    await eventually_here(lambda: bool(starting))
    for _ in range(10):
        async with channel_to(port) as channel:
            assert await channel.unary_unary(ECHO)(b"x", timeout=PATIENCE) == b"x"
    await transport.stop(0)
    close_all(starting)


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (OSError(11, "no processes left"), "front end 1 cannot be started: no processes left"),
        (ends_at_once, "front end 1 ended while it started"),
        (says_nothing, r"front end 1 was not ready after 0\.01 s"),
    ],
)
async def test_one_that_does_not_come_up_is_a_configuration_error_and_ends_the_others(
    launch: Launch | OSError, said: str
) -> None:
    launches = Launches(launch)
    transport = made(Handlers(), launches, count=2, patience=Patience(start=0.01))
    with pytest.raises(ConfigurationError, match=said):
        await transport.start()
    assert [here.task.done() for here in launches.here] == [True]


async def test_one_that_does_not_end_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    stands: list[Stand] = []

    def launch(link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
        stands.append(listens_to_nothing(link, sockets))  # type: ignore[arg-type]
        return stands[-1]

    transport = made(Handlers(), Launches(launch), patience=Patience(last_words=0.01))
    await transport.start()
    await transport.stop(0)
    assert stands[0].killed
    assert "front end 1 (process 7) did not end in time" in caplog.text


def test_one_that_hangs_is_replaced_and_one_that_has_nothing_to_do_is_not() -> None:
    loop = HandClock()
    stands: list[Stand] = []

    def hangs(link: socket.socket, sockets: Sequence[socket.socket]) -> Started:
        stands.append(listens_to_nothing(link, sockets))  # type: ignore[arg-type]
        return stands[-1]

    async def test() -> None:
        launches = Launches(hangs)
        transport = made(Handlers(), launches, patience=Patience(silence=10))
        await transport.start()
        await loop.advance(10)
        assert not stands[0].killed
        await loop.advance(10)
        assert (stands[0].killed, transport.restarts) == (True, {"hung": 1})
        for _ in range(100):
            await loop.advance(1)
        assert len(launches.here) == 1
        # As if the server had stood still itself.
        await loop.advance(1000)
        for _ in range(100):
            await loop.advance(1)
        assert (len(launches.here), transport.restarts) == (1, {"hung": 1})
        await transport.stop(0)

    on_hand_clock(test(), loop)


async def test_stopping_while_one_is_started_again_stops_that_as_well() -> None:
    launches = Launches(None, says_nothing)
    transport = made(Handlers(), launches)
    await transport.start()
    launches.here[0].kill()
    await eventually_here(lambda: not launches.others)
    await transport.stop(0)
    assert transport.seats == []


async def test_nobody_is_left_at_the_port_after_the_stop() -> None:
    transport = made(Handlers(), Launches(), count=2)
    port = await transport.start()
    await transport.stop(0)
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()


async def test_each_of_many_takes_a_large_message() -> None:
    transport = made(Handlers(), Launches(), count=64)
    port = await transport.start()
    message = bytes(17 * 2**20)
    no_limit = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", no_limit) as channel:
        assert len(await channel.unary_unary(ECHO)(message)) == len(message)
    await transport.stop(0)


async def test_front_ends_log_as_the_server_does_now() -> None:
    launches = Launches()
    transport = made(Handlers(), launches)
    await transport.start()
    transport.configure_log(logging.DEBUG, "json")
    [here] = launches.here
    await eventually_here(lambda: here.logged == [(logging.WARNING, "text"), (logging.DEBUG, "json")])
    here.kill()
    await eventually_here(lambda: len(launches.here) == 2)
    await eventually_here(lambda: launches.here[1].logged == [(logging.DEBUG, "json")])
    await transport.stop(0)


@pytest.mark.parametrize("tls", [None, TlsMaterial(b"chain", b"key"), TlsMaterial(b"chain", b"key", b"authorities")])
def test_a_front_end_is_told_all_that_it_needs(tls: TlsMaterial | None) -> None:
    listen = ListenOptions("unix:/tmp/x", 0, 1000, 2000, 3.5, tls)
    hello = Hello((MethodKind(ECHO, False, True),), listen, 5, 1.5, 30, "json")
    assert Hello.decode(hello.encode()) == hello
