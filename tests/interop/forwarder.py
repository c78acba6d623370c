"""A way to a server that counts what is carried along it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PART_BYTES = 65_536


class Forwarder:
    """Counts bytes before they are passed on."""

    def __init__(self, listening: socket.socket, server: str) -> None:
        self.target = f"127.0.0.1:{listening.getsockname()[1]}"
        self.to_server = self.from_server = 0
        self._listening = listening
        self._server = server
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        host, _, port = self._server.rpartition(":")
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                upstream = socket.create_connection((host, int(port)))
                self._sockets += [client, upstream]
                self._start(self._pump, client, upstream, "to_server")
                self._start(self._pump, upstream, client, "from_server")

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(_PART_BYTES):
                setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # Wakes the threads, which closing alone does not.
        for each in (self._listening, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def forwarding(server: str) -> Iterator[Forwarder]:
    """`server` is HOST:PORT, as the target of the forwarder is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        forwarder = Forwarder(listening, server)
        try:
            yield forwarder
        finally:
            forwarder.close()
