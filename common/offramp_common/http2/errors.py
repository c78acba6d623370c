"""What ends a connection, and what ends only a stream (RFC 9113, section 7)."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """By their numbers on the wire."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """For messages; codes that are none of them are their numbers."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)


class ConnectionFailed(Exception):
    """The peer broke the protocol or a limit; nothing more is read from it. `reason` is for GOAWAY and the log."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class StreamFailed(Exception):
    """This stream is reset, and the connection goes on."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
