"""How a call ends: the status codes of gRPC, and the exception for all but one of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Code(enum.IntEnum):
    """The status codes of gRPC, by their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallFailed(Exception):
    """A call ends with a status other than OK. `trailing` is its trailing metadata: bytes under keys that end in -bin,
    such as the google.rpc.Status in grpc-status-details-bin, and text under all others."""

    def __init__(self, code: Code, message: str, trailing: Mapping[str, str | bytes] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailing = trailing or {}
