"""What happens around every call: who may make it, how its failure is told, and one line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from offramp_server.rpc.auth import Authenticator
from offramp_server.rpc.status import failure_of, identified
from offramp_server.transport.interface import Answer, CallContext, CallFailed, Code, Handler, Method, Service

_logger = logging.getLogger("offramp.rpc")

# What the operator may have to act on; the other codes say that the caller should.
_OPERATORS = frozenset(
    {Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.DATA_LOSS}
)


def guarded(service: Service, authenticator: Authenticator) -> Service:
    """The same service; its handlers now end with a result, CallFailed, or CancelledError."""
    return replace(service, methods=tuple(_guard(method, authenticator) for method in service.methods))


def _guard(method: Method, authenticator: Authenticator) -> Method:
    guard = _guard_stream if method.server_streaming else _guard_unary
    return replace(method, handler=guard(method, authenticator))


def _guard_unary(method: Method, authenticator: Authenticator) -> Handler:
    handler = cast("Callable[[Any, CallContext], Awaitable[Answer]]", method.handler)
    authorise, clock = authenticator.gate(method.path), time.perf_counter

    async def call(request: Any, context: CallContext) -> Answer:
        started = clock()
        try:
            authorise(request, context)
            answer = await handler(request, context)
        except Exception as error:
            raise told(error, method.name, request, started) from error
        except asyncio.CancelledError:
            _log_cancelled(method.name, request, started)
            raise
        if _logger.isEnabledFor(logging.DEBUG):
            _log(logging.DEBUG, method.name, request, started, Code.OK, "")
        return answer

    return call


def _guard_stream(method: Method, authenticator: Authenticator) -> Handler:
    handler = cast("Callable[[Any, CallContext], Any]", method.handler)
    authorise = authenticator.gate(method.path)

    async def call(request: Any, context: CallContext) -> AsyncIterator[Answer]:
        started = time.perf_counter()
        try:
            authorise(request, context)
            async with aclosing(handler(request, context)) as answers:
                async for answer in answers:
                    yield answer
        except Exception as error:
            raise told(error, method.name, request, started) from error

    return call


def told(error: Exception, method: str, request: Any, started: float) -> CallFailed:
    """What the caller is told of `error`, which goes into the log. `started` is of time.perf_counter()."""
    failure = identified(failure_of(error), getattr(request, "id", ""))
    level = logging.WARNING if failure.code in _OPERATORS else logging.INFO
    _log(level, method, request, started, failure.code, failure.message)
    return failure


def _log_cancelled(method: str, request: Any, started: float) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        _log(logging.DEBUG, method, request, started, Code.CANCELLED, "")


def _log(level: int, method: str, request: Any, started: float, code: Code, message: str) -> None:
    """One line for one call; what the caller sent is named and never shown."""
    if not _logger.isEnabledFor(level):
        return
    fields = {
        "method": method,
        "model": getattr(request, "model_name", "") or getattr(request, "name", ""),
        "request_id": getattr(request, "id", ""),
        "code": code.name,
        "ms": round((time.perf_counter() - started) * 1000, 3),
    }
    _logger.log(level, "call failed: %s" if message else "call ended%s", message, extra=fields)
