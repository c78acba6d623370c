"""Which servers a run can be made of, by the names of the command line, and how each is set up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness.workloads import MAX_BATCH
from benchmarks.servers.base import Server
from benchmarks.servers.echo import GrpcAioEcho
from benchmarks.servers.kserve import KServe
from benchmarks.servers.mlserver import MAX_BATCH_TIME_S, MLServer
from benchmarks.servers.offramp import AUTO, NATIVE, Offramp
from benchmarks.servers.triton import Triton

# The same for all: one thread that computes, batches where the server can form them.
EQUAL = "equal"
# What each server's documentation recommends for this load.
RECOMMENDED = "recommended"
# As equal, but nobody waits for more requests, which a single caller would only lose by.
UNDELAYED = "undelayed"

TRITON_DELAY_US = 1000
TRITON_EQUAL = (
    f"dynamic batching up to {MAX_BATCH}, queue delay {TRITON_DELAY_US / 1000:g} ms (identity: none), one CPU instance"
)
TRITON_UNDELAYED = "dynamic batching without a queue delay, one CPU instance"
TRITON_RECOMMENDED = (
    f'dynamic batching up to {MAX_BATCH} with default settings, so no queue delay (user guide, "Batchers: Recommended '
    'Configuration Process"); two CPU instances, one thread each ("Optimization: Model Instances": "Typically, having '
    'two instances of a model will improve performance")'
)
ADAPTIVE = f"adaptive batching {MAX_BATCH} / {MAX_BATCH_TIME_S * 1e3:g} ms but for identity"
MLSERVER_EQUAL = f"{ADAPTIVE}; uvloop < 0.22"
MLSERVER_RECOMMENDED = (
    '{adaptive}, as its user guide asks for where batches are cheaper ("Adaptive Batching": values "found through '
    'experimentation"); parallel_workers = cores ({cores}), one thread each (Seldon Core 2, "Performance tuning: '
    'Inference": "adjust parallel_workers in line with the number of CPU cores"); uvloop < 0.22'
)
KSERVE_EQUAL = "no batcher in the model server; computes on its event loop, as KServe's examples do"
KSERVE_RECOMMENDED = (
    "no batcher in the model server; computes in the event loop's thread pool, max_asyncio_workers = cores ({cores}), "
    'one thread each ("Python Serving Runtime API"), identity on the event loop. Its `workers` multiplies the HTTP '
    "server only; for gRPC KServe scales by pods, for which one machine of {cores} cores has no room"
)
OFFRAMP_EQUAL = f"continuous batching up to {MAX_BATCH}, no delay timer, one instance of one thread"
OFFRAMP_RECOMMENDED = (
    f'defaults: backend "auto" on the exported program, threads and instances by itself; batches up to {MAX_BATCH}; '
    "engines compared at the first start, with all the time they need"
)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def equal_mlserver(engine: str) -> Sequence[Server]:
    return [MLServer(engine, workers, MLSERVER_EQUAL) for workers in (0, 1)]


def recommended_mlserver(engine: str) -> Sequence[Server]:
    return [MLServer(engine, cores(), MLSERVER_RECOMMENDED.format(adaptive=ADAPTIVE, cores=cores()))]


# By settings and name; called with the engine.
PEERS: Mapping[str, Mapping[str, Callable[[str], Sequence[Server]]]] = {
    EQUAL: {
        "triton": lambda engine: [Triton(engine, 1, TRITON_DELAY_US, TRITON_EQUAL)],
        "mlserver": equal_mlserver,
        "kserve": lambda engine: [KServe(engine, 0, KSERVE_EQUAL)],
    },
    RECOMMENDED: {
        "triton": lambda engine: [Triton(engine, 2, 0, TRITON_RECOMMENDED)],
        "mlserver": recommended_mlserver,
        "kserve": lambda engine: [KServe(engine, cores(), KSERVE_RECOMMENDED.format(cores=cores()))],
    },
    UNDELAYED: {
        "triton": lambda engine: [Triton(engine, 1, 0, TRITON_UNDELAYED)],
    },
}


def own_servers(settings: str, engine: str, transports: Sequence[str] = (NATIVE,)) -> list[Server]:
    """Return Offramp with each of the transports, in both modes if the settings are equal, and the echo control."""
    if settings == RECOMMENDED:
        kinds = [(AUTO, "process", OFFRAMP_RECOMMENDED)]
    else:
        kinds = [(engine, mode, OFFRAMP_EQUAL) for mode in ("in-process", "process")]
    return [*(Offramp(*kind, transport) for transport in transports for kind in kinds), GrpcAioEcho()]


def peers(names: Sequence[str], settings: str, engine: str) -> list[Server]:
    """Return the peers named. Raises ValueError for a name that is not in PEERS."""
    known = PEERS[settings]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown peer {unknown[0]!r}: expected some of {', '.join(known)}")
    return [server for name in names for server in known[name](engine)]
