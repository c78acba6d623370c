"""The one table from the errors of the domain to status codes."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from types import MappingProxyType

from offramp_server import errors
from offramp_server.inference import ParameterValue
from offramp_server.transport.interface import CallFailed, Code

_logger = logging.getLogger("offramp.rpc")

# UNAVAILABLE is what clients (KServe's among them) retry by themselves, so overload must not be in it.
# A model that failed is UNKNOWN because INTERNAL tells the caller nothing, and here there is something to tell.
CODES = MappingProxyType(
    {
        errors.InvalidRequest: Code.INVALID_ARGUMENT,
        errors.NotFound: Code.NOT_FOUND,
        errors.AlreadyExists: Code.ALREADY_EXISTS,
        errors.Conflict: Code.ABORTED,
        errors.FailedPrecondition: Code.FAILED_PRECONDITION,
        errors.NotSupported: Code.UNIMPLEMENTED,
        errors.PermissionDenied: Code.PERMISSION_DENIED,
        errors.Unauthenticated: Code.UNAUTHENTICATED,
        errors.Overloaded: Code.RESOURCE_EXHAUSTED,
        errors.Unavailable: Code.UNAVAILABLE,
        errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
        errors.ModelFailed: Code.UNKNOWN,
        errors.ConfigurationError: Code.FAILED_PRECONDITION,
        errors.LoadError: Code.FAILED_PRECONDITION,
    }
)

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "offramp-request-id"
# What metadata may hold, and never so much that a client refuses the trailers. A request's id is its caller's choice.
_METADATA_VALUE = re.compile(r"[\x21-\x7e]{1,256}")
# A status message travels in a header, and clients refuse more than 8 KB of those.
MAX_MESSAGE_LENGTH = 2000


def failure_of(error: Exception) -> CallFailed:
    """The status that tells a caller of `error`. What is not in the table is logged and told as INTERNAL and an id."""
    if isinstance(error, CallFailed):
        return error
    for kind in type(error).__mro__:
        code = CODES.get(kind)
        if code is not None:
            return CallFailed(code, _cut(str(error)), _trailing(error))
    return _internal(error)


def identified(failure: CallFailed, request_id: str) -> CallFailed:
    """The same failure, which tells the caller of which request it is where metadata can hold the id."""
    if not _METADATA_VALUE.fullmatch(request_id):
        return failure
    return CallFailed(failure.code, failure.message, {**failure.trailing, REQUEST_ID_KEY: request_id})


def failure_parameters(failure: CallFailed, request_id: str) -> dict[str, ParameterValue]:
    """The failure of one request in a stream that goes on, where status and trailing metadata are still to come."""
    parameters: dict[str, ParameterValue] = {"offramp_status": failure.code.name, "offramp_request_id": request_id}
    return {**parameters, **_retry_after(failure.trailing)}


def _retry_after(trailing: Mapping[str, str | bytes]) -> dict[str, ParameterValue]:
    pushback = trailing.get(PUSHBACK_KEY)
    return {} if pushback is None else {"offramp_retry_after": int(pushback) / 1000}


def _trailing(error: Exception) -> dict[str, str | bytes]:
    if isinstance(error, errors.Overloaded):
        return {PUSHBACK_KEY: str(max(0, round(error.retry_after * 1000)))}
    return {}


def _internal(error: Exception) -> CallFailed:
    error_id = uuid.uuid4().hex
    _logger.error("internal error %s", error_id, exc_info=error, extra={"error_id": error_id})
    return CallFailed(Code.INTERNAL, f"internal error; its id in the server's log is {error_id}")


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 1] + "…"
