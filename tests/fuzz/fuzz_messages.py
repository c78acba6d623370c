"""The reader of messages beside one that is given everything at once and takes its time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fuzz_steps import Script, Step, read_script
from offramp_common.grpc_framing.messages import ENCODINGS, PREFIX_BYTES, WINDOW_BITS, MessageBytes, MessageReader
from offramp_server.transport.interface import CallFailed, Code

_MAX_BYTES = 5000
_ZEROS = (0, 1, 100, 4999, 5000, 5001, 100_000)


def _plain(step: Step, encoding: str) -> bytes:
    message = step.blob * (step.value if step.flags & 1 else 1)
    return bytes(1) + len(message).to_bytes(4) + message


def _packed(step: Step, encoding: str) -> bytes:
    """Of the encoding that is said or of another one, whole or not, with something behind it or not."""
    squeeze = zlib.compressobj(step.value % 10, wbits=WINDOW_BITS.get(encoding, 15) if not step.flags & 1 else -15)
    body = squeeze.compress(step.blob + bytes(_ZEROS[step.stream % len(_ZEROS)])) + squeeze.flush()
    if step.flags & 2:
        body = body[: step.value]
    if step.flags & 4:
        body += step.blob
    return b"\1" + len(body).to_bytes(4) + body


def _declared(step: Step, encoding: str) -> bytes:
    return bytes((step.flags,)) + (step.value << step.stream % 24).to_bytes(4) + step.blob


def _raw(step: Step, encoding: str) -> bytes:
    return step.blob


_PARTS: tuple[Callable[[Step, str], bytes], ...] = (_plain, _packed, _declared, _raw)
OPERATIONS = len(_PARTS)


@dataclass
class _Found:
    messages: list[bytes] = field(default_factory=list)
    failure: Code | None = None
    # The body ends with a message.
    whole: bool = True


def check(data: bytes) -> None:
    """Raises AssertionError where the two do not mean the same."""
    script = read_script(data)
    encoding = ENCODINGS[script.setup % len(ENCODINGS)]
    body = b"".join(_PARTS[step.operation % OPERATIONS](step, encoding) for step in script.steps)
    expected = _read(body, encoding)
    assert _fed(list(_cut(body, script)), encoding) == expected
    assert _fed([body], encoding) == expected


def _cut(body: bytes, script: Script) -> Iterator[bytes]:
    """As the steps are, or in pieces of one size."""
    size = script.setup >> 2 or len(body) or 1
    return (body[at : at + size] for at in range(0, len(body), size))


def _fed(pieces: list[bytes], encoding: str) -> _Found:
    found, came = _Found(), 0

    def take(message: MessageBytes) -> None:
        found.messages.append(bytes(message))

    # What is large may be left packed, to be unpacked elsewhere: here that is at once.
    reader = MessageReader(encoding, _MAX_BYTES, take, leave=lambda packed: take(packed.unpacked()))
    for piece in pieces:
        came += len(piece)
        try:
            reader.feed(piece)
        except CallFailed as failure:
            found.failure = failure.code
            return found
        assert reader.held_bytes <= min(came, _MAX_BYTES)
        assert all(len(message) <= _MAX_BYTES for message in found.messages)
    found.whole = reader.between_messages
    return found


def _read(body: bytes, encoding: str) -> _Found:
    found = _Found()
    while body:
        if len(body) < PREFIX_BYTES:
            found.whole = False
            return found
        flag, size = body[0], int.from_bytes(body[1:PREFIX_BYTES])
        if flag > 1 or (flag and encoding == "identity"):
            found.failure = Code.INTERNAL
        elif size > _MAX_BYTES:
            found.failure = Code.RESOURCE_EXHAUSTED
        if found.failure is not None:
            return found
        message, body = body[PREFIX_BYTES : PREFIX_BYTES + size], body[PREFIX_BYTES + size :]
        if len(message) < size:
            found.whole = False
            return found
        unpacked = _unpacked(message, encoding) if flag else message
        if isinstance(unpacked, Code):
            found.failure = unpacked
            return found
        found.messages.append(unpacked)
    return found


def _unpacked(message: bytes, encoding: str) -> bytes | Code:
    """A byte at a time, as long as it is not too large."""
    unpack, plain = zlib.decompressobj(WINDOW_BITS[encoding]), b""
    try:
        for at in range(len(message)):
            plain += unpack.decompress(message[at : at + 1])
            if len(plain) > _MAX_BYTES:
                return Code.RESOURCE_EXHAUSTED
    except zlib.error:
        return Code.INTERNAL
    return plain if unpack.eof and not unpack.unused_data else Code.INTERNAL
