"""Who may call what: bearer tokens with roles.

Without tokens everybody may infer, and nobody may manage unless the server is bound to the loopback interface. With
tokens every call needs one, except health and the two calls by which an orchestrator asks whether the server is up.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from offramp_server.errors import PermissionDenied, Unauthenticated
from offramp_server.transport.interface import CallContext

AUTHORIZATION = "authorization"
_SCHEME = "bearer "
_INFERENCE = "/inference.GRPCInferenceService/"
_OPEN_SERVICES = ("/grpc.health.v1.",)
_OPEN = frozenset({_INFERENCE + "ServerLive", _INFERENCE + "ServerReady"})
_ROUTES = "/offramp.v1.RouteService/"
_MANAGEMENT = frozenset(
    {
        _INFERENCE + "RepositoryModelLoad",
        _INFERENCE + "RepositoryModelUnload",
        _ROUTES + "UpdateRoute",
        # It names who else has changed what.
        _ROUTES + "ListRouteChanges",
    }
)
# They read if the request names no setting, and change the whole server if it does.
_SETTINGS = frozenset({_INFERENCE + "TraceSetting", _INFERENCE + "LogSettings"})


class Role(enum.IntEnum):
    """What a caller may do; a higher one includes the lower."""

    INFER = 1
    ADMIN = 2


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the server knows it: never itself, only its SHA-256 in hexadecimal."""

    name: str
    role: Role
    sha256: str


# Decides one call of the method that it was made for; `request` is the message, or an iterator of them.
Gate: TypeAlias = Callable[[Any, CallContext], None]


class Authenticator:
    """Decides calls by the token in their metadata."""

    def __init__(self, tokens: Sequence[Token] = (), *, management_allowed: bool = False) -> None:
        """`management_allowed` counts only where there are no tokens: the server is bound to loopback."""
        self._tokens = tuple((token, token.sha256.lower().encode()) for token in tokens)
        self._anonymous = Role.ADMIN if management_allowed else Role.INFER

    def gate(self, path: str) -> Gate:
        """What every call of the method `path` has to pass.

        It raises Unauthenticated without a valid token, PermissionDenied if its role does not reach.
        """
        if path in _OPEN or path.startswith(_OPEN_SERVICES):
            return _pass
        if path in _SETTINGS:
            return partial(self._check_change, path)
        required = Role.ADMIN if path in _MANAGEMENT else Role.INFER
        if not self._tokens and self._anonymous >= required:
            return _pass
        return partial(self._check, path, required)

    def caller(self, context: CallContext) -> str:
        """Who calls, for the record: the token's name; without tokens the name in the caller's certificate, or where
        he calls from. Raises Unauthenticated."""
        if self._tokens:
            return self._token(context).name
        return context.identity or context.peer

    def manages(self, context: CallContext) -> bool:
        """Whether the caller may manage the server. Raises Unauthenticated."""
        return self._role(context) >= Role.ADMIN

    def _check_change(self, path: str, request: Any, context: CallContext) -> None:
        self._check(path, Role.ADMIN if request.settings else Role.INFER, request, context)

    def _check(self, path: str, required: Role, request: Any, context: CallContext) -> None:
        if self._role(context) < required:
            raise PermissionDenied(_refusal(path, with_tokens=bool(self._tokens)))

    def _role(self, context: CallContext) -> Role:
        return self._token(context).role if self._tokens else self._anonymous

    def _token(self, context: CallContext) -> Token:
        header = context.metadata.get(AUTHORIZATION, "")
        if not isinstance(header, str) or header[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated('this server needs metadata "authorization: Bearer TOKEN"')
        token = self._match(header[len(_SCHEME) :].strip())
        if token is None:
            raise Unauthenticated("the bearer token is not one of this server's")
        return token

    def _match(self, presented: str) -> Token | None:
        digest = hashlib.sha256(presented.encode()).hexdigest().encode()
        found: Token | None = None
        # Every token is compared, so that the time taken does not tell which one it was.
        for token, expected in self._tokens:
            if hmac.compare_digest(digest, expected) and (found is None or token.role > found.role):
                found = token
        return found


def _pass(request: Any, context: CallContext) -> None:
    """Open to everybody."""


def _refusal(path: str, *, with_tokens: bool) -> str:
    method = path.rsplit("/", 1)[-1]
    if with_tokens:
        return f"{method} needs a token with the role admin"
    return f"{method} is refused: this server has no tokens and listens beyond loopback; configure a token for admin"
