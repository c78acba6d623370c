"""What the two clients have in common: how they are made, and what they are told to do."""

from __future__ import annotations

import random
import time
from typing import Any

from offramp_client._connection import connection_to
from offramp_client._methods import Method
from offramp_client._plans import Planner
from offramp_client._transports import TransportName, transport_named
from offramp_client.options import TLS, KeepAlive
from offramp_client.retry import RetryPolicy

DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Loading includes compiling and warming up.
LOAD_TIMEOUT = 300.0


class BaseClient:
    """See `offramp_client.Client` and `offramp_client.AsyncClient`."""

    def __init__(
        self,
        target: str = "localhost:8001",
        *,
        tls: TLS | bool | None = None,
        token: str | None = None,
        timeout: float | None = 10.0,
        retries: RetryPolicy | None = None,
        keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008 - frozen
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        allow_insecure_token: bool = False,
        transport: TransportName = "grpcio",
    ) -> None:
        """Nothing is sent, and nothing has to be listening yet.

        Args:
            target: `host:port`, or any other gRPC target ("dns:///models.example:8001", "unix:/run/offramp.sock").
            tls: True to check the server against the authorities that come with gRPC, `TLS(...)` for one's own and
                for mutual TLS; None or False for no encryption.
            token: a bearer token, sent with every call; without TLS only to this machine.
            timeout: seconds that a call may take with all its attempts, unless it says otherwise; None: no limit.
            retries: when to try again; None: `RetryPolicy()`. `RetryPolicy(max_attempts=1)` never does.
            keepalive: how a dead connection is found; None: not at all.
            max_message_bytes: the largest request and the largest answer.
            allow_insecure_token: send the token to another machine without TLS all the same.
            transport: what carries the calls. "native" is HTTP/2 of our own, which costs much less CPU for each call;
                it needs the extra `native`, checks servers against the authorities that the system knows where it is
                not told others, and uses no proxy.

        Raises:
            ValueError: an argument makes no sense; the sentence says what would.
            OSError: a PEM file cannot be read.
            MissingExtra: the transport needs a package that is not installed.
        """
        self._connection = connection_to(target, tls, token, keepalive, max_message_bytes, allow_insecure_token)
        self._transport = transport_named(transport, self._connection)
        self._plans = Planner(timeout, retries or RetryPolicy(), time.monotonic, random.random)
        self._closed = False
        self._connect()

    def _connect(self) -> None:
        """For what has to be done when a client is made."""

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}({self._connection.target!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed; make a new one")

    def _callables(self, channel: Any) -> dict[str, Any]:
        """By path, what each method is called by. Bytes go in and come out: the plans know what they mean."""
        return {method.path: _callable(channel, method) for method in self._plans.methods}


def _callable(channel: Any, method: Method) -> Any:
    if method.client_streaming:
        return channel.stream_stream(method.path)
    return channel.unary_stream(method.path) if method.server_streaming else channel.unary_unary(method.path)
