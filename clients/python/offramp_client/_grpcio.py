"""Channels of grpcio, and what it is told."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
import grpc.aio

from offramp_client._connection import Connection
from offramp_client.options import KeepAlive
from offramp_client.target import is_loopback

_ChannelOptions: TypeAlias = tuple[tuple[str, int | str], ...]


class Grpcio:
    """A `Transport`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        security = connection.security
        self._credentials = security and grpc.ssl_channel_credentials(
            root_certificates=security.ca, private_key=security.key, certificate_chain=security.certificate
        )

    def blocking_channel(self) -> Any:
        return self._channel(grpc)

    def asyncio_channel(self) -> Any:
        return self._channel(grpc.aio)

    def _channel(self, module: Any) -> Any:
        options = channel_options(self._connection)
        if self._credentials is None:
            return module.insecure_channel(self._connection.target, options)
        return module.secure_channel(self._connection.target, self._credentials, options)


def channel_options(connection: Connection) -> _ChannelOptions:
    security = connection.security
    name = security.server_name if security is not None else None
    return (
        *_message_options(connection.target, connection.max_message_bytes),
        *_keepalive_options(connection.keepalive),
        *((("grpc.ssl_target_name_override", name),) if name else ()),
    )


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
