"""Heads of requests for fuzzers: those of gRPC, and each with something added, changed or missing."""

from __future__ import annotations

from dataclasses import dataclass

PATHS = ("swift", "task", "client", "client_swift", "server", "bidi", "nothing", "swift")
_USUAL = ((":method", "POST"), (":scheme", "http"), (":path", "/s/echo"), ("content-type", "application/grpc"))


@dataclass(frozen=True, slots=True)
class Variation:
    """`odd`: such a request need not be answered as one that is well-formed."""

    more: tuple[tuple[str, str], ...] = ()
    without: str = ""
    # Before all others.
    first: tuple[tuple[str, str], ...] = ()
    odd: bool = False
    encoding: str = "identity"
    # Seconds.
    timeout: float | None = None


def _odd(*more: tuple[str, str], without: str = "", first: tuple[tuple[str, str], ...] = ()) -> Variation:
    return Variation(more, without, first, odd=True)


def _timeout(text: str, seconds: float) -> Variation:
    return Variation((("grpc-timeout", text),), timeout=seconds)


def _encoding(name: str, *more: tuple[str, str]) -> Variation:
    return Variation((("grpc-encoding", name), *more), encoding=name)


# By their place in a step: new ones take the place of the last ones, which are plain.
VARIATIONS = (
    Variation(),
    Variation((("x-text", "v"),)),
    Variation((("data-bin", "AAEC"),)),
    _odd(("data-bin", "?!")),
    _timeout("5m", 0.005),
    _timeout("99999999H", 99_999_999 * 3600.0),
    _timeout("1S", 1.0),
    _timeout("0n", 0.0),
    _odd(("grpc-timeout", "soon")),
    _encoding("gzip"),
    _encoding("deflate"),
    _encoding("gzip", ("grpc-accept-encoding", "identity")),
    _odd(("grpc-encoding", "snappy")),
    Variation((("te", "trailers"),)),
    _odd(("te", "gzip")),
    _odd(("connection", "close")),
    _odd(("Upper", "case")),
    _odd(without=":path"),
    _odd(first=((":path", "/s/swift"),)),
    _odd((":late", "x")),
    _odd(without="content-type"),
    Variation((("content-type", "application/grpc+proto"),), without="content-type"),
    _odd(("content-type", "application/grpcx"), without="content-type"),
    _odd((":method", "GET"), without=":method"),
    Variation((("x-large", "l" * 1000),)),
    _odd(("x-too-large", "l" * 5000)),
    _odd(("x-zero", "a\0b")),
    _odd(("", "no name")),
    Variation((("data-bin", "AAEC,AwQF"),)),
    Variation((("x-twice", "1"), ("x-twice", "2"))),
    Variation(tuple((f"x-{number}", "n") for number in range(15))),
    Variation(),
)


def fields_of(path: str, variation: Variation, key: str) -> list[tuple[str, str]]:
    """`key` is to be told back by the handler; empty: none is sent."""
    usual = [(name, f"/s/{path}" if name == ":path" else value) for name, value in _USUAL if name != variation.without]
    if variation.first or (variation.more and variation.more[0][0] == ":method"):
        return [*variation.more, *variation.first, *usual]
    keys = [("k", key)] if key else []
    return [*usual, *keys, *variation.more]
