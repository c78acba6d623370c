"""Services on a port by means of grpc.aio.

Messages are parsed and serialised here rather than inside grpc.aio, which would answer a message that does not parse
with UNKNOWN and a traceback. Every handler is bound once, when the server is built: a call runs through one coroutine
of ours and no interceptors.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio

from offramp_server.errors import ConfigurationError
from offramp_server.transport.handling import failure_of, joined, parsed, serialized
from offramp_server.transport.interface import (
    Answer,
    CallFailed,
    ListenOptions,
    Method,
    Service,
    TlsMaterial,
)
from offramp_server.transport.unix_socket import claimed, path_of

_logger = logging.getLogger("offramp.transport")

_GrpcHandler: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, "bytes | None"]]
_STATUS = MappingProxyType({status.value[0]: status for status in grpc.StatusCode})


class GrpcioTransport:
    """A grpc.aio server. Build and use it on the event loop that serves."""

    def __init__(self, services: Iterable[Service], options: ListenOptions) -> None:
        self._options = options
        self._server = grpc.aio.server(options=_channel_options(options))
        self._server.add_generic_rpc_handlers((_Handlers(services),))

    async def start(self) -> int:
        port = self._bind()
        await self._server.start()
        return port

    async def stop(self, grace: float) -> None:
        await self._server.stop(grace)

    def _bind(self) -> int:
        path = path_of(self._options.host)
        if path is not None:
            # gRPC would take the place of any server that listens there.
            with claimed(path):
                self._add_port(self._options.host)
            return 0
        host, port = self._options.host, self._options.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # Asked before gRPC is, which writes lines of its own to standard error and does not tell us why.
        reason = _reason_not_to_bind(host, port)
        if reason:
            raise ConfigurationError(f"cannot listen on {address}: {reason}")
        return self._add_port(address)

    def _add_port(self, address: str) -> int:
        try:
            if self._options.tls is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, _credentials(self._options.tls)))
        except RuntimeError as error:
            raise ConfigurationError(
                f"cannot listen on {address}: gRPC could not use the address or the certificate"
            ) from error


def _channel_options(options: ListenOptions) -> list[tuple[str, int]]:
    return [
        # Two servers on one port would share its connections without anybody noticing.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_metadata_size", options.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", options.max_metadata_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", int(options.min_ping_interval * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _credentials(tls: TlsMaterial) -> Any:
    return grpc.ssl_server_credentials(
        [(tls.private_key, tls.certificate_chain)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )


def _reason_not_to_bind(host: str, port: int) -> str | None:
    """What the operating system says to the same address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror
    return None


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """All methods of all services in one look-up."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._handlers = {method.path: _bind(method) for service in services for method in service.methods}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


def _bind(method: Method) -> Any:
    bind = _BINDINGS[method.client_streaming, method.server_streaming]
    return bind(_answers_stream(method) if method.server_streaming else _answers_once(method))


_BINDINGS: Mapping[tuple[bool, bool], Callable[[_GrpcHandler], Any]] = MappingProxyType(
    {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
)


def _answers_once(method: Method) -> _GrpcHandler:
    read = _reader(method)
    handler = cast("Callable[[Any, _Context], Coroutine[Any, Any, Answer]]", method.handler)

    async def handle(incoming: Any, grpc_context: Any) -> bytes:
        context = _Context(grpc_context)
        try:
            return joined(serialized(await handler(read(incoming), context)))
        except Exception as error:
            raise await _abort(context, method, error) from error
        finally:
            context.end()

    return handle


def _answers_stream(method: Method) -> _GrpcHandler:
    read = _reader(method)
    handler = cast("Callable[[Any, _Context], Any]", method.handler)

    async def handle(incoming: Any, grpc_context: Any) -> None:
        context = _Context(grpc_context)
        try:
            # Closed here and not by the garbage collector, so that a cancelled stream has let go of its work at once.
            async with aclosing(handler(read(incoming), context)) as answers:
                async for answer in answers:
                    await _write(grpc_context, method, joined(serialized(answer)))
        except Exception as error:
            raise await _abort(context, method, error) from error
        finally:
            context.end()

    return handle


async def _write(grpc_context: Any, method: Method, message: bytes) -> None:
    """Raises CancelledError if the caller has gone, of which grpc.aio makes an error of its own."""
    try:
        await grpc_context.write(message)
    except Exception as gone:
        _logger.debug("%s was over before its answers were: %s", method.path, gone)
        raise asyncio.CancelledError("the call is over") from gone


def _reader(method: Method) -> Callable[[Any], Any]:
    """What turns that which grpc.aio hands over into that which a handler takes."""

    def parse(data: bytes) -> Any:
        return parsed(method, data)

    async def parse_each(incoming: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in incoming:
            yield parse(data)

    return parse_each if method.client_streaming else parse


async def _abort(context: _Context, method: Method, error: Exception) -> BaseException:
    """End the call with the status of `error`. Returns the exception by which grpc.aio knows that it has ended."""
    failure = failure_of(method, error)
    try:
        await context.abort(failure)
    except Exception as ended:
        if isinstance(ended, grpc.aio.AbortError):
            return cast("Exception", ended)
        # The call is over already, by its deadline or by the caller, and grpc.aio may not know that yet: it would log
        # its own exception as an error, with a traceback for every call that comes too late.
        _logger.debug("%s was over before its status was sent: %s", method.path, ended)
        return asyncio.CancelledError("the call is over")
    return error


class _Context:
    """A `CallContext` over that of grpc.aio; nothing is asked of it before somebody wants to know."""

    __slots__ = ("_deadline", "_grpc", "_metadata", "_trailing")

    def __init__(self, grpc_context: Any) -> None:
        self._grpc = grpc_context
        self._deadline: float | None = None
        self._metadata: Mapping[str, str | bytes] | None = None
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()

    @property
    def deadline(self) -> float | None:
        if self._deadline is None:
            remaining = self._grpc.time_remaining()
            if remaining is not None:
                self._deadline = asyncio.get_running_loop().time() + remaining
        return self._deadline

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        if self._metadata is None:
            self._metadata = dict(self._grpc.invocation_metadata() or ())
        return self._metadata

    @property
    def peer(self) -> str:
        return str(self._grpc.peer())

    @property
    def identity(self) -> str | None:
        names = self._grpc.auth_context().get("x509_common_name")
        return names[0].decode(errors="replace") if names else None

    def set_trailing(self, key: str, value: str | bytes) -> None:
        self._trailing = (*self._trailing, (key, value))
        self._grpc.set_trailing_metadata(self._trailing)

    async def abort(self, failure: CallFailed) -> None:
        trailing = (*self._trailing, *failure.trailing.items())
        await self._grpc.abort(_STATUS[failure.code], failure.message, trailing)

    def end(self) -> None:
        """Some of grpc.aio's answers crash the process when the call is over."""
        self._grpc = _ENDED


class _Ended:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the call is over; what a handler needs of its context it has to ask before")


_ENDED = _Ended()
