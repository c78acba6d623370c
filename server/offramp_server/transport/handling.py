"""What every transport does around a handler: bytes to messages, answers to bytes, errors to what callers are told."""

from __future__ import annotations

import logging
from typing import Any

from google.protobuf.message import DecodeError
from offramp_common.grpc_framing.messages import MessageBytes

from offramp_server.transport.interface import Answer, CallFailed, Code, Method, Parts

_logger = logging.getLogger("offramp.transport")


def parsed(method: Method, data: MessageBytes) -> Any:
    """Raises CallFailed."""
    try:
        return method.parse(data)
    except DecodeError:
        said = f"the message does not parse: expected {method.request_type}"
        raise CallFailed(Code.INVALID_ARGUMENT, said) from None


def serialized(answer: Answer) -> bytes | Parts:
    return answer if isinstance(answer, (bytes, Parts)) else answer.SerializeToString()


def joined(message: bytes | Parts) -> bytes:
    """For transports that take a message in one piece."""
    return message if isinstance(message, bytes) else message.joined()


def failure_of(method: Method, error: BaseException) -> CallFailed:
    """What the caller is told. What nobody meant to happen is logged, and the caller learns no more than that."""
    if isinstance(error, CallFailed):
        return error
    _logger.error("%s failed in a way that its servicer did not map", method.path, exc_info=error)
    return CallFailed(Code.INTERNAL, "internal error")
