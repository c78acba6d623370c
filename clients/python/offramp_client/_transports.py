"""What may carry the calls of a client."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

from offramp_common.extras import needs_extra

from offramp_client._connection import Connection
from offramp_client._grpcio import Grpcio

TransportName: TypeAlias = Literal["grpcio", "native"]


class Transport(Protocol):
    """Its channels have what grpcio's have of `unary_unary(path)` and its kin, as far as the clients use it."""

    def blocking_channel(self) -> Any: ...

    def asyncio_channel(self) -> Any:
        """To be made on the event loop that is to use it."""
        ...


def transport_named(name: TransportName, connection: Connection) -> Transport:
    """Raises ValueError, and MissingExtra where a package is not installed."""
    if name == "grpcio":
        return Grpcio(connection)
    if name != "native":
        raise ValueError(f'transport "{name}": expected "grpcio" or "native"')
    # Only now: who stays with grpcio needs no hpack.
    with needs_extra("native", 'transport="native"'):
        from offramp_client._native.opening import Native
    return Native(connection)
