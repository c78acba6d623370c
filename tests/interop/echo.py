"""The echo server as a test starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from client_certificates import Authority
from echo_server import SERVICE
from eventually import PATIENCE

_PROGRAM = Path(__file__).parent / "echo_server.py"
HOST = "127.0.0.1"
TRANSPORTS = ("grpcio", "native")


@dataclass
class EchoServer:
    """The process, and where it listens."""

    process: subprocess.Popen[str]
    targets: dict[str, str]
    # Who signed its certificate, and whose clients it takes at "mutual".
    authority: Authority

    def ask(self, method: str, message: bytes = b"") -> bytes:
        """By a client of its own."""
        with grpc.insecure_channel(self.targets["plain"]) as channel:
            answer: bytes = channel.unary_unary(SERVICE + method)(message, timeout=PATIENCE)
            return answer

    def count(self, what: str) -> int:
        return int(json.loads(self.ask("counts")).get(what, 0))

    def tell(self, number: int) -> None:
        """SIGTERM drains it, SIGUSR1 lets all calls go on that wait."""
        self.process.send_signal(number)

    def answered(self) -> int:
        """How many calls of `unary`, once it has ended well."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert self.process.wait(PATIENCE) == 0
        return int(json.loads(said)["answered"])


@contextmanager
def echoing(transport: str, folder: Path) -> Iterator[EchoServer]:
    authority = Authority()
    pair = authority.sign(HOST)
    for name, content in (
        ("server.pem", pair.certificate),
        ("server.key", pair.key),
        ("ca.pem", authority.certificate),
    ):
        (folder / name).write_bytes(content)
    command = [sys.executable, str(_PROGRAM), transport, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield EchoServer(process, json.loads(process.stdout.readline()), authority)
        finally:
            process.kill()
