"""The errors of the server's domain. They know nothing of gRPC; `rpc/status.py` maps them to status codes.

A message says what was wrong and what would be right. It reaches the caller, except that of an InternalError.
"""

from __future__ import annotations

from offramp_common.errors import ConfigurationError as ConfigurationError
from offramp_common.errors import LoadError as LoadError
from offramp_common.errors import OfframpError as OfframpError


class InvalidRequest(OfframpError):
    """The request can never succeed as it is."""

    reason = "invalid_argument"


class NotFound(OfframpError):
    """No such model, version, route or region."""

    reason = "not_found"


class AlreadyExists(OfframpError):
    """A name is taken."""

    reason = "already_exists"


class Conflict(OfframpError):
    """Somebody else has changed it since the caller last looked. Looking again and deciding again may help."""

    reason = "aborted"


class FailedPrecondition(OfframpError):
    """Not in the present state, or not on this server as it is configured."""

    reason = "failed_precondition"


class NotSupported(OfframpError):
    """The server does not do this."""

    reason = "unimplemented"


class PermissionDenied(OfframpError):
    """The caller is known and may not."""

    reason = "permission_denied"


class Unauthenticated(OfframpError):
    """The caller did not show a valid token."""

    reason = "unauthenticated"


class Overloaded(OfframpError):
    """Refused at once because a bound is reached. `retry_after` is a hint in seconds."""

    reason = "resource_exhausted"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(OfframpError):
    """Not now: starting, draining, or the model has no live worker. Worth a retry."""

    reason = "unavailable"


class DeadlineExceeded(OfframpError):
    """The request's time ran out before its answer was ready."""

    reason = "deadline_exceeded"


class ModelFailed(OfframpError):
    """The model raised, answered in another shape than it declares, or killed its worker on every attempt."""


class InternalError(OfframpError):
    """A defect of ours. The caller sees an id, the log has the rest."""
