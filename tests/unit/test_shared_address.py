"""One address for several processes of a server, and for nobody else."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from offramp_server.errors import ConfigurationError
from offramp_server.transport.listening import SharedAddress, bound_sockets, close_all, port_of


def free_port() -> int:
    bound = bound_sockets("127.0.0.1", 0)
    port = port_of(bound)
    close_all(bound)
    return port


@pytest.fixture(params=["one that the kernel chooses", "one that is told"])
def address(request: pytest.FixtureRequest) -> Iterator[SharedAddress]:
    address = SharedAddress("127.0.0.1", free_port() if "told" in request.param else 0)
    yield address
    address.close()


def listening_at(address: SharedAddress) -> list[socket.socket]:
    """As a front end does once it can carry calls."""
    sockets = address.sockets()
    for each in sockets:
        each.listen()
    return sockets


def connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        pass


def test_several_processes_listen_at_the_port_that_was_free(address: SharedAddress) -> None:
    first, second = listening_at(address), listening_at(address)
    assert {each.getsockname()[1] for each in (*first, *second)} == {address.port}
    connect(address.port)
    close_all(first)
    connect(address.port)
    close_all(second)


def test_the_port_stays_ours_while_nobody_listens_there(address: SharedAddress) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(address.port)
    with pytest.raises(ConfigurationError, match="Address already in use"):
        SharedAddress("127.0.0.1", address.port)
    with pytest.raises(ConfigurationError, match="Address already in use"):
        bound_sockets("127.0.0.1", address.port)
    again = listening_at(address)
    connect(address.port)
    close_all(again)


def test_of_servers_that_start_at_once_one_has_the_port() -> None:
    for _ in range(50):
        port, together = free_port(), threading.Barrier(4)

        def start(port: int = port, together: threading.Barrier = together) -> SharedAddress | None:
            together.wait()
            try:
                return SharedAddress("127.0.0.1", port)
            except ConfigurationError:
                return None

        with ThreadPoolExecutor(4) as servers:
            started = [each.result() for each in [servers.submit(start) for _ in range(4)]]
        having = [each for each in started if each is not None]
        for each in having:
            each.close()
        assert len(having) == 1


def test_a_port_that_a_server_had_a_moment_ago_can_be_had() -> None:
    with socket.socket() as before:
        before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before.bind(("127.0.0.1", 0))
        before.listen()
        port = before.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = before.accept()
            # Who closes first leaves a connection that lingers.
            accepted.close()
            assert client.recv(1) == b""
    address = SharedAddress("127.0.0.1", port)
    listening = listening_at(address)
    connect(port)
    close_all(listening)
    address.close()


def test_processes_at_a_path_share_one_queue_of_connections(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    address = SharedAddress(f"unix:{path}", 0)
    first, second = address.sockets(), address.sockets()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        close_all(first)
        second[0].settimeout(10)
        accepted, _ = second[0].accept()
        accepted.close()
    close_all(second)
    address.close()
    assert not path.exists()


def test_every_address_of_a_name_is_shared() -> None:
    address = SharedAddress("localhost", 0)
    listening = listening_at(address)
    assert {each.getsockname()[1] for each in listening} == {address.port}
    close_all(listening)
    address.close()


def test_what_cannot_be_bound_leaves_nothing_open(address: SharedAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, at: object) -> None:
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(OSError, match="in use"):
        address.sockets()
