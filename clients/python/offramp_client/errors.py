"""What a call can end with: one class for each status code, all of them `OfframpError`.

    try:
        client.infer("fashion", {"image": image})
    except offramp_client.ResourceExhausted as error:
        time.sleep(error.retry_after or 1.0)

Only `Unavailable` is retried by the client itself. An error raised by a call has the transport's own exception as its
`__cause__`. Arguments that cannot be sent (a datatype that does not travel, a negative timeout) raise ValueError or
TypeError before anything is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "offramp-request-id"


class OfframpError(Exception):
    """Root of the tree: the server's answer is an error, or no answer arrived."""

    #: The name of the gRPC status code.
    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, request_id: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        #: What was wrong, and what would be right.
        self.message = message
        #: The server's id of the failed request, to be found in its log; None if it sent none.
        self.request_id = request_id
        #: Seconds after which the server expects to do better; infinite if it asks not to be tried again; None if
        #: it says nothing.
        self.retry_after = retry_after


class Cancelled(OfframpError):
    """The call was cancelled, by the server or because the client was closed under it."""

    code = "CANCELLED"


class Unknown(OfframpError):
    """The model failed, or the server told no more."""

    code = "UNKNOWN"


class InvalidArgument(OfframpError):
    """The request can never succeed as it is: a wrong name, datatype, shape or length."""

    code = "INVALID_ARGUMENT"


class DeadlineExceeded(OfframpError):
    """The call's time ran out."""

    code = "DEADLINE_EXCEEDED"


class NotFound(OfframpError):
    """No such model, version or route."""

    code = "NOT_FOUND"


class AlreadyExists(OfframpError):
    """A name is taken."""

    code = "ALREADY_EXISTS"


class PermissionDenied(OfframpError):
    """The token is valid and its role may not do this."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(OfframpError):
    """The server is overloaded and refused at once (see `retry_after`), or a message is too large."""

    code = "RESOURCE_EXHAUSTED"


class FailedPrecondition(OfframpError):
    """Not in the server's present state, or not as it is configured: a model that does not load, for example."""

    code = "FAILED_PRECONDITION"


class Aborted(OfframpError):
    """Given up because of something else that happened at the same time."""

    code = "ABORTED"


class OutOfRange(OfframpError):
    """Past the end of what there is."""

    code = "OUT_OF_RANGE"


class Unimplemented(OfframpError):
    """This server does not do that."""

    code = "UNIMPLEMENTED"


class Internal(OfframpError):
    """A defect of the server, whose log has the id that the message names."""

    code = "INTERNAL"


class ProtocolError(Internal):
    """The server's answer breaks the protocol: perhaps it is not an inference server, or speaks another version."""


class Unavailable(OfframpError):
    """The server cannot be reached, is starting or draining, or the model has no live worker."""

    code = "UNAVAILABLE"


class DataLoss(OfframpError):
    """Something that was stored is gone or damaged."""

    code = "DATA_LOSS"


class Unauthenticated(OfframpError):
    """The server wants a valid token."""

    code = "UNAUTHENTICATED"


_KINDS = (
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
)
_BY_CODE = MappingProxyType({kind.code: kind for kind in _KINDS})


def error_class(code: str) -> type[OfframpError]:
    """The class for a status code by its name; `Unknown` for a name that is none."""
    return _BY_CODE.get(code, Unknown)


def from_status(code: str, message: str, trailing: Mapping[str, str | bytes]) -> OfframpError:
    """The typed error for a status and its trailing metadata."""
    request_id = trailing.get(REQUEST_ID_KEY)
    return error_class(code)(
        message or f"the server said {code} and no more",
        request_id=str(request_id) if request_id else None,
        retry_after=_pushback(trailing.get(PUSHBACK_KEY)),
    )


def _pushback(value: str | bytes | None) -> float | None:
    """Seconds. What is negative or no number means "do not retry" (gRPC proposal A6, client retries)."""
    if value is None:
        return None
    try:
        milliseconds = int(value)
    except ValueError:
        return math.inf
    return milliseconds / 1000 if milliseconds >= 0 else math.inf
