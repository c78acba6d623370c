"""How a client reaches its server."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

#: PEM, or where it is.
Pem: TypeAlias = str | Path | bytes


class _Default(enum.Enum):
    OF_CLIENT = enum.auto()

    def __repr__(self) -> str:
        return "CLIENT_DEFAULT"


#: As `timeout` of a call: what the client was made with.
CLIENT_DEFAULT: Final = _Default.OF_CLIENT

#: Seconds that a call may take with all its attempts; None: no limit.
Timeout: TypeAlias = float | _Default | None


@dataclass(frozen=True, slots=True)
class TLS:
    """How to know the server, and for mutual TLS how to be known.

    Each PEM is given as a path (`str` or `Path`) or as its `bytes`. Raises ValueError for half a key pair, OSError
    (when the client is made) for a file that cannot be read.
    """

    #: The certificate authorities that may have signed the server's certificate; None: those that come with gRPC.
    ca: Pem | None = None
    #: The client's certificate chain and private key, where the server wants them (mutual TLS).
    certificate: Pem | None = None
    key: Pem | None = None
    #: The name to expect in the server's certificate, where it differs from the target's host.
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ValueError(f"TLS: {given} is given without {missing}; mutual TLS needs both")
        for name in ("ca", "certificate", "key"):
            # Taken for a path, a private key would end up in the error message.
            if "-----BEGIN" in str(getattr(self, name)) and not isinstance(getattr(self, name), bytes):
                raise ValueError(f"TLS: {name} is PEM text; give it as bytes, or give the path of a file")

    def __repr__(self) -> str:
        return f"TLS(server_name={self.server_name!r}, mutual={self.certificate is not None})"


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """HTTP/2 pings that find a dead connection while a call waits on it.

    Servers disconnect a client that pings more often than they like: Offramp allows one every 10 s, gRPC's own
    default is one every 5 min (it matters only to calls that are silent for longer than `interval`).
    """

    #: Seconds of silence before a ping.
    interval: float = 30.0
    #: Seconds to wait for its answer before the connection is given up.
    timeout: float = 10.0
    #: Whether to ping while no call is in flight. The blocking client's native transport does not: nobody is there.
    while_idle: bool = False

    def __post_init__(self) -> None:
        if not (self.interval >= 1 and self.timeout > 0):
            raise ValueError(
                "KeepAlive: interval has to be at least 1 s and timeout positive, "
                f"got {self.interval:g} and {self.timeout:g}"
            )
