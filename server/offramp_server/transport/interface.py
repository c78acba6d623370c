"""Calls as servicers see them, whatever carries them: protobuf messages, a context, an error with a status code.

A servicer is an object with one snake_case coroutine method for each rpc of a protobuf service. `Service.of` binds it
to the service's descriptor; a transport (`transport/grpcio.py`) puts a sequence of such services on a port.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from offramp_common.grpc_framing.messages import MessageBytes
from offramp_common.grpc_framing.status import CallFailed as CallFailed
from offramp_common.grpc_framing.status import Code as Code
from offramp_common.http2.stream import Payload


class CallContext(Protocol):
    """What a handler may know about its call, and say besides its answer."""

    @property
    def deadline(self) -> float | None:
        """The caller's deadline on the event loop's clock (seconds); None: no limit."""
        ...

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The caller's metadata by lower-case key; of a key that was sent several times, the last value."""
        ...

    @property
    def peer(self) -> str:
        """The caller's address, for logs."""
        ...

    @property
    def identity(self) -> str | None:
        """The common name in the certificate that the caller proved to own; None without mutual TLS."""
        ...

    def set_trailing(self, key: str, value: str | bytes) -> None:
        """Send a pair of trailing metadata with the answer. `key` is lower-case; under one that ends in -bin the value
        is bytes, under all others text."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """A serialised message that is too large to be copied into one piece. Nobody changes its parts any more."""

    # Bytes, or views of some, that are sent one after the other.
    parts: Sequence[Payload]

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def joined(self) -> bytes:
        return b"".join(self.parts)


# A message, or its bytes from a handler that has serialised it by itself.
Answer: TypeAlias = Message | bytes | Parts
# Unary answers are awaited, streamed ones iterated; a request is one message or an asynchronous iterator of them.
Handler: TypeAlias = Callable[[Any, CallContext], Awaitable[Answer] | AsyncIterator[Answer]]
# Raises protobuf's DecodeError.
Parse: TypeAlias = Callable[[MessageBytes], Any]

_F = TypeVar("_F", bound=Callable[..., Any])


def parses(by: str) -> Callable[[_F], _F]:
    """Mark a servicer's method as one that takes, instead of a protobuf message, what the servicer's method `by` makes
    of the bytes: a `Parse`."""

    def mark(method: _F) -> _F:
        method.parsed_by = by  # type: ignore[attr-defined]
        return method

    return mark


def swift(method: _F) -> _F:
    """Mark a servicer's method whose coroutine does not have to run in an asyncio.Task: it uses no asyncio.timeout(),
    no TaskGroup and no asyncio.current_task()."""
    method.swift = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc and what answers it."""

    name: str
    # /package.Service/Method
    path: str
    # Full name of the message that comes.
    request_type: str
    parse: Parse
    client_streaming: bool
    server_streaming: bool
    handler: Handler
    # See `swift`.
    swift: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """The rpcs of one protobuf service."""

    # package.Service
    name: str
    file: FileDescriptor
    methods: tuple[Method, ...]

    @classmethod
    def of(cls, descriptor: ServiceDescriptor, *servicers: object) -> Service:
        """Bind every rpc of `descriptor` to the method of that name, in snake_case, of the one servicer that has it.

        An rpc that none of them has answers UNIMPLEMENTED. Raises TypeError if two have it, or if a method is not of
        the kind that the rpc needs: a coroutine function, or an asynchronous generator for streamed answers.
        """
        methods = tuple(_bind(method, servicers) for method in descriptor.methods)
        return cls(descriptor.full_name, descriptor.file, methods)


def _bind(descriptor: MethodDescriptor, servicers: tuple[object, ...]) -> Method:
    path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    handler = _handler(descriptor, path, servicers)
    return Method(
        name=descriptor.name,
        path=path,
        request_type=descriptor.input_type.full_name,
        parse=_parse(handler, descriptor),
        client_streaming=descriptor.client_streaming,
        server_streaming=descriptor.server_streaming,
        handler=handler,
        swift=getattr(handler, "swift", False),
    )


def _parse(handler: Handler, descriptor: MethodDescriptor) -> Parse:
    by = getattr(handler, "parsed_by", None)
    if by is not None:
        return cast("Parse", getattr(cast("MethodType", handler).__self__, by))
    # It takes what is like bytes; the stubs do not know it.
    return cast("Parse", GetMessageClass(descriptor.input_type).FromString)


def _handler(descriptor: MethodDescriptor, path: str, servicers: tuple[object, ...]) -> Handler:
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", descriptor.name).lower()
    found = [getattr(servicer, name) for servicer in servicers if hasattr(servicer, name)]
    if not found:
        return _unimplemented(path, descriptor.server_streaming)
    if len(found) > 1:
        raise TypeError(f"{path}: {len(found)} servicers have a method {name}")
    handler: Handler = found[0]
    fits = inspect.isasyncgenfunction if descriptor.server_streaming else inspect.iscoroutinefunction
    if not fits(handler):
        kind = "an asynchronous generator" if descriptor.server_streaming else "a coroutine function"
        raise TypeError(f"{path}: {name} has to be {kind}")
    return handler


def _unimplemented(path: str, server_streaming: bool) -> Handler:
    async def refuse(request: Any, context: CallContext) -> Message:
        raise CallFailed(Code.UNIMPLEMENTED, f"{path} is not implemented by this server")

    async def refuse_stream(request: Any, context: CallContext) -> AsyncIterator[Message]:
        yield await refuse(request, context)

    return refuse_stream if server_streaming else refuse


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """PEM bytes. With `client_ca` a client has to prove a certificate that it signed (mutual TLS)."""

    certificate_chain: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where to listen, and the bounds of what is accepted there."""

    # A name or an address, or unix:PATH.
    host: str
    # 0 takes a free one. Of no meaning for a path.
    port: int
    max_message_bytes: int = 64 * 1024 * 1024
    max_metadata_bytes: int = 16 * 1024
    # A client that pings more often than this, while it is told nothing of any call, is disconnected. Seconds.
    min_ping_interval: float = 10.0
    tls: TlsMaterial | None = None


class HasMethods(Protocol):
    """What of a service a transport asks for."""

    @property
    def methods(self) -> tuple[Method, ...]: ...


class Transport(Protocol):
    """A running server."""

    async def start(self) -> int:
        """Listen and serve. Returns the bound port. Raises ConfigurationError if the address cannot be had."""
        ...

    async def stop(self, grace: float) -> None:
        """Refuse new calls, wait `grace` seconds for those in flight, then cancel what is left."""
        ...
