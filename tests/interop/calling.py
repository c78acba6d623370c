"""Calls as every client of this suite makes them, and what it learns of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from eventually import PATIENCE
from offramp_server.transport.interface import Code

Kind: TypeAlias = Literal["unary", "client_stream", "server_stream", "bidi"]
Pair: TypeAlias = tuple[str, str | bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """Messages are bytes: no client has to know what is in them."""

    path: str
    messages: tuple[bytes, ...] = (b"",)
    kind: Kind = "unary"
    # Values of keys that end in -bin are bytes.
    metadata: tuple[Pair, ...] = ()
    # Seconds.
    timeout: float = PATIENCE
    # gzip or deflate.
    compression: str | None = None
    # The client gives up after so many.
    cancel_after_answers: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: Code
    message: str = ""
    answers: tuple[bytes, ...] = ()
    initial: tuple[Pair, ...] = ()
    trailing: tuple[Pair, ...] = ()

    def trailer(self, key: str) -> str | bytes | None:
        """The last value."""
        return dict(self.trailing).get(key)


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that is under way."""

    future: Future[Outcome]
    cancel: Callable[[], None]

    def outcome(self) -> Outcome:
        return self.future.result(PATIENCE)


@dataclass(frozen=True, slots=True)
class Tls:
    """What a client trusts, and how it proves who it is. PEM."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    # Of TLS, as "TLSv1.3"; None: what the client chooses.
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """One connection."""

    # As grpcio writes them: HOST:PORT, [ADDRESS]:PORT, unix:PATH.
    target: str
    tls: Tls | None = None
    # gzip or deflate for all calls.
    compression: str | None = None
    # Of gRPC's core; grpc-js knows most of them by the same names.
    options: Mapping[str, int] = field(default_factory=dict)


class Channel(Protocol):
    """A connection, once the first call needs it."""

    def begin(self, call: Call) -> Pending: ...

    def close(self) -> None: ...


class Client(Protocol):
    """One of the libraries that may call the server."""

    def open(self, opening: Opening) -> Channel: ...

    def close(self) -> None: ...


def code_of(value: object) -> Code:
    """Of a number, or of a status of grpcio's or grpclib's."""
    return Code(value) if isinstance(value, int) else Code[str(value).rpartition(".")[2]]


def pairs_of(metadata: object) -> tuple[Pair, ...]:
    """Of grpcio's metadata, or of another iterable of pairs; None: there are none."""
    return tuple((str(key), value) for key, value in metadata or ())  # type: ignore[attr-defined]
