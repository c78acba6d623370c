"""Every client of this suite, and what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from calling import Client
from driven import DrivenClient
from drivers import cpp_driver, node_driver
from offramp_clients import OfframpAsyncioClient, OfframpBlockingClient
from python_clients import AsyncioClient, BlockingClient, GrpclibClient
from triton_clients import TritonAsyncioClient, TritonClient

# What a test may need of its clients, as arguments of `pytest.mark.needs`.
ANY_CALL = "other calls than ModelInfer"
CALL_COMPRESSION = "compression of a call"
CHANNEL_COMPRESSION = "compression of a channel"
CORE_OPTIONS = "options of gRPC's core"
TLS_VERSION = "a version of TLS"
SUCCESS_METADATA = "metadata of a call that ended well"
AFTER_GOAWAY = "calls that go on after GOAWAY"
UNARY_CANCEL = "the end of a call that is awaited, from elsewhere"


@dataclass(frozen=True)
class Candidate:
    """`make` raises drivers.Missing. `lacks` has the reason for each thing that a test may need and it has not."""

    make: Callable[[], Client]
    lacks: Mapping[str, str] = field(default_factory=dict)


_OF_GRPCIO = {TLS_VERSION: "the core takes 1.2 and 1.3, and grpcio passes on no choice"}
_OF_TRITON = {
    **_OF_GRPCIO,
    ANY_CALL: "it knows the methods of its own service",
    CHANNEL_COMPRESSION: "it is told with each call",
}
_OF_OFFRAMP = {
    **dict.fromkeys((CALL_COMPRESSION, CHANNEL_COMPRESSION), "the SDK does not compress"),
    CORE_OPTIONS: "it has settings of its own",
    TLS_VERSION: "the SDK passes on no choice",
    SUCCESS_METADATA: "the SDK has no use for it",
}

CANDIDATES: Mapping[str, Candidate] = MappingProxyType(
    {
        "grpcio": Candidate(BlockingClient, _OF_GRPCIO),
        "grpc.aio": Candidate(AsyncioClient, _OF_GRPCIO),
        "tritonclient": Candidate(TritonClient, _OF_TRITON),
        "tritonclient.aio": Candidate(TritonAsyncioClient, _OF_TRITON),
        "grpclib": Candidate(
            GrpclibClient,
            {
                CALL_COMPRESSION: "it does not compress",
                CHANNEL_COMPRESSION: "it does not compress",
                CORE_OPTIONS: "it has settings of its own",
                AFTER_GOAWAY: "it closes its connection at GOAWAY, whatever goes on there",
            },
        ),
        "offramp": Candidate(OfframpBlockingClient, {**_OF_OFFRAMP, UNARY_CANCEL: "it blocks until the call is over"}),
        "offramp.aio": Candidate(OfframpAsyncioClient, _OF_OFFRAMP),
        "c++": Candidate(
            lambda: DrivenClient(cpp_driver()),
            {TLS_VERSION: "1.51, which Debian 12 has, passes on no choice"},
        ),
        "grpc-js": Candidate(
            lambda: DrivenClient(node_driver()),
            {CALL_COMPRESSION: "a channel compresses all calls or none"},
        ),
    }
)
