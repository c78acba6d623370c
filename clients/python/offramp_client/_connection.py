"""What both clients are made with, whatever carries their calls, and how its errors become ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc
from offramp_common.grpc_framing.status import CallFailed

from offramp_client.errors import OfframpError, from_status
from offramp_client.options import TLS, KeepAlive, Pem
from offramp_client.target import check_target, is_loopback

#: What the calls of a channel raise, be it grpcio's or our own.
FAILURES = (grpc.RpcError, CallFailed)


@dataclass(frozen=True, slots=True)
class Security:
    """PEM, read; see `TLS`."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None = field(repr=False)
    server_name: str | None


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a channel is made from. `security` None: without TLS."""

    target: str
    security: Security | None
    keepalive: KeepAlive | None
    max_message_bytes: int
    #: Sent with every call.
    metadata: tuple[tuple[str, str], ...]


def connection_to(
    target: str,
    tls: TLS | bool | None,
    token: str | None,
    keepalive: KeepAlive | None,
    max_message_bytes: int,
    allow_insecure_token: bool,
) -> Connection:
    """Check what a client was made with. Raises ValueError with a sentence, OSError for a PEM file."""
    check_target(target)
    if max_message_bytes < 1:
        raise ValueError(f"max_message_bytes has to be positive, got {max_message_bytes}")
    security = TLS() if tls is True else tls or None
    if token is not None:
        _check_token(token, target, secure=security is not None or allow_insecure_token)
    return Connection(
        target,
        None if security is None else _read(security),
        keepalive,
        max_message_bytes,
        () if token is None else (("authorization", f"Bearer {token}"),),
    )


def typed_error(error: grpc.RpcError | CallFailed) -> OfframpError:
    """Ours for the channel's, which becomes its cause."""
    if isinstance(error, CallFailed):
        typed = from_status(error.code.name, error.message, error.trailing)
    else:
        trailing = dict(error.trailing_metadata() or ())
        typed = from_status(error.code().name, error.details() or "", trailing)
    typed.__cause__ = error
    return typed


def _check_token(token: str, target: str, *, secure: bool) -> None:
    if not token.isascii() or not token.isprintable() or token != token.strip() or not token:
        raise ValueError("the token is empty or has characters that cannot travel in a header (is there a line break?)")
    if not secure and not is_loopback(target):
        raise ValueError(
            f'the token would go to "{target}" unencrypted; pass tls=True or tls=TLS(...), '
            "or allow_insecure_token=True if something else encrypts the connection"
        )


def _read(tls: TLS) -> Security:
    return Security(_bytes(tls.ca), _bytes(tls.certificate), _bytes(tls.key), tls.server_name)


def _bytes(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()
