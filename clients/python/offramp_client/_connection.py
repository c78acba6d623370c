"""What both clients tell gRPC, and how its errors become ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from offramp_client.errors import OfframpError, from_status
from offramp_client.options import TLS, KeepAlive, Pem
from offramp_client.target import check_target, is_loopback

_ChannelOptions: TypeAlias = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a channel is made from. `credentials` None: without TLS."""

    target: str
    credentials: Any
    options: _ChannelOptions
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
        None if security is None else _credentials(security),
        (
            *_message_options(target, max_message_bytes),
            *_keepalive_options(keepalive),
            *((("grpc.ssl_target_name_override", security.server_name),) if security and security.server_name else ()),
        ),
        () if token is None else (("authorization", f"Bearer {token}"),),
    )


def typed_error(error: grpc.RpcError) -> OfframpError:
    """Ours for gRPC's, which becomes its cause."""
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


def _credentials(tls: TLS) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca), private_key=_read(tls.key), certificate_chain=_read(tls.certificate)
    )


def _read(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


def _message_options(target: str, max_message_bytes: int) -> _ChannelOptions:
    return (
        ("grpc.primary_user_agent", "offramp-python"),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # The client retries by itself, within the deadline of the call.
        ("grpc.enable_retries", 0),
        # gRPC's own pause before it connects again (from 1 s to 2 min) would outlast every retry.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A proxy for the outside world is neither needed on the way to this machine nor to be shown a token.
        ("grpc.enable_http_proxy", 0 if is_loopback(target) else 1),
    )


def _keepalive_options(keepalive: KeepAlive | None) -> _ChannelOptions:
    if keepalive is None:
        return ()
    return (
        ("grpc.keepalive_time_ms", round(keepalive.interval * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive.timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", int(keepalive.while_idle)),
        ("grpc.http2.max_pings_without_data", 0),
    )
