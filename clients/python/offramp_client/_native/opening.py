"""Our own channels, made from what a client was made with."""

from __future__ import annotations

import random
import time
from typing import Any

from offramp_client._connection import Connection
from offramp_client._native.addresses import addresses_of, authority_of
from offramp_client._native.aio_channel import Channel as AsyncioChannel
from offramp_client._native.blocking_channel import Channel as BlockingChannel
from offramp_client._native.settings import Settings
from offramp_client._native.tls import tls_context


class Native:
    """A `Transport`."""

    def __init__(self, connection: Connection) -> None:
        """Raises ValueError for what only grpcio can do, or a PEM that is none."""
        self._settings = _settings(connection)

    def blocking_channel(self) -> Any:
        return BlockingChannel(self._settings)

    def asyncio_channel(self) -> Any:
        return AsyncioChannel(self._settings)


def _settings(connection: Connection) -> Settings:
    security = connection.security
    name = security.server_name if security is not None else None
    return Settings(
        addresses_of(connection.target),
        name or authority_of(connection.target),
        connection.max_message_bytes,
        connection.keepalive,
        time.monotonic,
        random.random,
        None if security is None else tls_context(security.ca, security.certificate, security.key),
        name,
    )
