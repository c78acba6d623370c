from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from calling import Channel, Client, Opening
from drivers import Missing
from echo import TRANSPORTS, EchoServer, echoing
from serve import offramp_serve
from server_process import ServerProcess

from clients import ANY_CALL, CANDIDATES


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*what): leaves out the clients that lack any of it (clients.py)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [marker.args[0] for marker in metafunc.definition.iter_markers("parametrize")]
    if "transport" in metafunc.fixturenames and "transport" not in chosen:
        metafunc.parametrize("transport", TRANSPORTS)
    if "client" in metafunc.fixturenames and "client" not in chosen:
        needs = {what for marker in metafunc.definition.iter_markers("needs") for what in marker.args}
        if "echo" in metafunc.fixturenames:
            needs.add(ANY_CALL)
        names = [name for name, candidate in CANDIDATES.items() if not needs & candidate.lacks.keys()]
        metafunc.parametrize("client", names, indirect=True)


@pytest.fixture(scope="session")
def made_clients() -> Iterator[Callable[[str], Client]]:
    """By name, once for all tests."""
    with ExitStack() as stack:

        @cache
        def make(name: str) -> Client:
            client = CANDIDATES[name].make()
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def client(request: pytest.FixtureRequest, made_clients: Callable[[str], Client]) -> Client:
    try:
        return made_clients(request.param)
    except Missing as missing:
        pytest.skip(f"{request.param}: {missing}")


@pytest.fixture(scope="session")
def echo_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], EchoServer]]:
    """By transport, once for all tests."""
    with ExitStack() as stack:

        @cache
        def start(transport: str) -> EchoServer:
            return stack.enter_context(echoing(transport, tmp_path_factory.mktemp("echo")))

        yield start


@pytest.fixture
def echo(transport: str, echo_servers: Callable[[str], EchoServer]) -> EchoServer:
    return echo_servers(transport)


@pytest.fixture(scope="session")
def served_by(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ServerProcess]]:
    """`offramp serve` by transport, once for all tests."""
    with ExitStack() as stack:

        @cache
        def start(transport: str) -> ServerProcess:
            return stack.enter_context(offramp_serve(transport, tmp_path_factory.mktemp("models")))

        yield start


@pytest.fixture
def served(transport: str, served_by: Callable[[str], ServerProcess]) -> ServerProcess:
    return served_by(transport)


@pytest.fixture
def opened(client: Client) -> Iterator[Callable[[Opening], Channel]]:
    """Opens channels that are closed after the test."""
    with ExitStack() as stack:

        def open_channel(opening: Opening) -> Channel:
            channel = client.open(opening)
            stack.callback(channel.close)
            return channel

        yield open_channel


@pytest.fixture
def channel(opened: Callable[[Opening], Channel], echo: EchoServer) -> Channel:
    """To the echo server, without TLS."""
    return opened(Opening(echo.targets["plain"]))
