"""What a channel is made with."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from offramp_common.http2.hpack import HuffmanCodes
from offramp_common.http2.limits import Http2Limits

from offramp_client._native.addresses import Address
from offramp_client.options import KeepAlive


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one channel. Times are in seconds."""

    #: Tried in this order.
    addresses: tuple[Address, ...]
    #: What requests are said to be for.
    authority: str
    max_message_bytes: int
    keepalive: KeepAlive | None
    #: Seconds on a clock that only goes on, and a uniform random number in [0, 1).
    clock: Callable[[], float]
    chance: Callable[[], float]
    tls: ssl.SSLContext | None = None
    #: The name to expect in the server's certificate; None: that of the address.
    server_name: str | None = None
    #: From the first packet to the server's SETTINGS.
    connect_timeout: float = 20.0
    #: Upper bounds of the pause after a first and after a later attempt that failed.
    initial_backoff: float = 0.1
    max_backoff: float = 2.0
    #: Of output that the server does not read, beyond requests: answers to what it sends.
    max_unread_bytes: int = 1024 * 1024
    limits: Http2Limits = field(default_factory=Http2Limits)
    codes: HuffmanCodes = field(default_factory=HuffmanCodes)
