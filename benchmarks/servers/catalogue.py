"""Which servers a run can be made of, by the names of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.servers.base import Server
from benchmarks.servers.echo import GrpcAioEcho
from benchmarks.servers.kserve import KServe
from benchmarks.servers.mlserver import MLServer
from benchmarks.servers.offramp import Offramp
from benchmarks.servers.triton import Triton

PEERS: Mapping[str, Callable[[], Sequence[Server]]] = {
    "triton": lambda: [Triton()],
    "mlserver": lambda: [MLServer(workers=0), MLServer(workers=1)],
    "kserve": lambda: [KServe()],
}


def own_servers() -> list[Server]:
    """Return Offramp in both modes and the echo control."""
    return [Offramp("in-process"), Offramp("process"), GrpcAioEcho()]


def peers(names: Sequence[str]) -> list[Server]:
    """Return the peers named. Raises ValueError for a name that is not in PEERS."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"unknown peer {unknown[0]!r}: expected some of {', '.join(PEERS)}")
    return [server for name in names for server in PEERS[name]()]
