"""The clients that live in this process: grpcio's blocking one, its asyncio one, and grpclib, which has an HTTP/2 of
its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import grpc.aio
from calling import Call, Channel, Opening, Outcome, Pair, Pending, Tls, code_of, pairs_of
from grpclib.client import Channel as GrpclibConnection
from grpclib.config import Configuration
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from offramp_server.transport.interface import Code

_COMPRESSIONS = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
# The bytes that grpcio is to leave as they are.
_LIMITLESS = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1}
# Calls of the blocking client that wait for a stream.
_THREADS = 64


def channel_options(opening: Opening) -> list[tuple[str, int]]:
    """Channels to the same place have connections of their own."""
    return list({**_LIMITLESS, "grpc.use_local_subchannel_pool": 1, **opening.options}.items())


def _credentials(tls: Tls) -> Any:
    return grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)


class BlockingClient:
    """grpc.insecure_channel and grpc.secure_channel."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS)

    def open(self, opening: Opening) -> Channel:
        return _BlockingChannel(opening, self._threads)

    def close(self) -> None:
        self._threads.shutdown()


class _BlockingChannel:
    def __init__(self, opening: Opening, threads: ThreadPoolExecutor) -> None:
        said = {"options": channel_options(opening), "compression": _COMPRESSIONS[opening.compression]}
        self._channel = (
            grpc.insecure_channel(opening.target, **said)
            if opening.tls is None
            else grpc.secure_channel(opening.target, _credentials(opening.tls), **said)
        )
        self._threads = threads

    def begin(self, call: Call) -> Pending:
        said = _said(call)
        if call.kind in ("unary", "client_stream"):
            return self._begin_once(call, said)
        if call.kind == "server_stream":
            stream = self._channel.unary_stream(call.path)(call.messages[0], **said)
        else:
            stream = self._channel.stream_stream(call.path)(iter(call.messages), **said)
        return Pending(self._threads.submit(_read, stream, call), stream.cancel)

    def _begin_once(self, call: Call, said: Mapping[str, Any]) -> Pending:
        if call.kind == "unary":
            started = self._channel.unary_unary(call.path).future(call.messages[0], **said)
        else:
            started = self._channel.stream_unary(call.path).future(iter(call.messages), **said)
        future: Future[Outcome] = Future()

        def on_done(done: Any) -> None:
            answers = (done.result(),) if done.code() is grpc.StatusCode.OK else ()
            future.set_result(_outcome(done, answers))

        started.add_done_callback(on_done)
        return Pending(future, started.cancel)

    def close(self) -> None:
        self._channel.close()


def _said(call: Call) -> dict[str, Any]:
    said: dict[str, Any] = {"timeout": call.timeout, "metadata": call.metadata}
    return said | ({} if call.compression is None else {"compression": _COMPRESSIONS[call.compression]})


def _read(stream: Any, call: Call) -> Outcome:
    answers = []
    with suppress(grpc.RpcError):
        for answer in stream:
            answers.append(answer)
            if len(answers) == call.cancel_after_answers:
                stream.cancel()
    return _outcome(stream, answers)


def _outcome(call: Any, answers: Iterable[bytes]) -> Outcome:
    initial, trailing = pairs_of(call.initial_metadata()), pairs_of(call.trailing_metadata())
    return Outcome(code_of(call.code()), call.details() or "", tuple(answers), initial, trailing)


class LoopClient:
    """What asyncio clients have in common: a loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def open(self, opening: Opening) -> Channel:
        return asyncio.run_coroutine_threadsafe(self._open(opening), self.loop).result()

    async def _open(self, opening: Opening) -> Channel:
        raise NotImplementedError

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class LoopChannel:
    """Its calls run as tasks of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def begin(self, call: Call) -> Pending:
        future: Future[Outcome] = Future()
        tasks: list[asyncio.Task[Outcome]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(self.make(call)))
            tasks[0].add_done_callback(lambda task: _settle(future, task))

        self._loop.call_soon_threadsafe(start)
        return Pending(future, lambda: self._on_loop(lambda: tasks[0].cancel()))

    def _on_loop(self, do: Callable[[], Any]) -> None:
        self._loop.call_soon_threadsafe(do)

    async def make(self, call: Call) -> Outcome:
        raise NotImplementedError

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.leave(), self._loop).result()

    async def leave(self) -> None:
        raise NotImplementedError


def _settle(future: Future[Outcome], task: asyncio.Task[Outcome]) -> None:
    if task.cancelled():
        future.set_result(Outcome(Code.CANCELLED))
    elif task.exception() is not None:
        future.set_exception(task.exception())
    else:
        future.set_result(task.result())


class AsyncioClient(LoopClient):
    """grpc.aio."""

    async def _open(self, opening: Opening) -> Channel:
        return _AsyncioChannel(opening, self.loop)


class _AsyncioChannel(LoopChannel):
    def __init__(self, opening: Opening, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        said = {"options": channel_options(opening), "compression": _COMPRESSIONS[opening.compression]}
        self._channel = (
            grpc.aio.insecure_channel(opening.target, **said)
            if opening.tls is None
            else grpc.aio.secure_channel(opening.target, _credentials(opening.tls), **said)
        )

    async def make(self, call: Call) -> Outcome:
        started = self._start(call)
        answers = []
        with suppress(grpc.aio.AioRpcError):
            if call.kind in ("unary", "client_stream"):
                answers.append(await started)
            else:
                async for answer in started:
                    answers.append(answer)
                    if len(answers) == call.cancel_after_answers:
                        started.cancel()
                        break
        code, details = await started.code(), await started.details()
        initial, trailing = await started.initial_metadata(), await started.trailing_metadata()
        return Outcome(code_of(code), details or "", tuple(answers), pairs_of(initial), pairs_of(trailing))

    def _start(self, call: Call) -> Any:
        said = _said(call)
        if call.kind == "unary":
            return self._channel.unary_unary(call.path)(call.messages[0], **said)
        if call.kind == "client_stream":
            return self._channel.stream_unary(call.path)(iter(call.messages), **said)
        if call.kind == "server_stream":
            return self._channel.unary_stream(call.path)(call.messages[0], **said)
        return self._channel.stream_stream(call.path)(iter(call.messages), **said)

    async def leave(self) -> None:
        await self._channel.close()


class GrpclibClient(LoopClient):
    """grpclib over h2."""

    async def _open(self, opening: Opening) -> Channel:
        return _GrpclibChannel(opening, self.loop)


class _Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class _Details(StatusDetailsCodecBase):
    def encode(self, status: Any, message: Any, details: Any) -> bytes:
        return bytes(details)

    def decode(self, status: Any, message: Any, data: bytes) -> Any:
        return data


_CARDINALITIES = {
    "unary": Cardinality.UNARY_UNARY,
    "client_stream": Cardinality.STREAM_UNARY,
    "server_stream": Cardinality.UNARY_STREAM,
    "bidi": Cardinality.STREAM_STREAM,
}


class _GrpclibChannel(LoopChannel):
    def __init__(self, opening: Opening, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        where: dict[str, Any] = {}
        if opening.target.startswith("unix:"):
            where["path"] = opening.target.removeprefix("unix:")
        else:
            host, _, port = opening.target.rpartition(":")
            where |= {"host": host.strip("[]"), "port": int(port)}
        tls = None if opening.tls is None else client_context(opening.tls)
        # Its window is that of h2 otherwise, 64 KB for a connection.
        windows = Configuration(http2_connection_window_size=4 * 2**20, http2_stream_window_size=4 * 2**20)
        self._channel = GrpclibConnection(
            codec=_Bytes(), status_details_codec=_Details(), ssl=tls, config=windows, **where
        )

    async def make(self, call: Call) -> Outcome:
        request = self._channel.request(
            call.path, _CARDINALITIES[call.kind], bytes, bytes, timeout=call.timeout, metadata=list(call.metadata)
        )
        answers: list[bytes] = []
        try:
            async with request as stream:
                await stream.send_request()
                sending = asyncio.create_task(_send(stream, call))
                try:
                    async for answer in _answers(stream):
                        answers.append(answer)
                        if len(answers) == call.cancel_after_answers:
                            await stream.cancel()
                            return Outcome(Code.CANCELLED, answers=tuple(answers))
                    await sending
                finally:
                    sending.cancel()
        except GRPCError as error:
            details = () if error.details is None else (("grpc-status-details-bin", error.details),)
            trailing = (*_pairs(stream.trailing_metadata), *details)
            return Outcome(code_of(error.status.value), error.message or "", tuple(answers), trailing=trailing)
        except TimeoutError:
            return Outcome(Code.DEADLINE_EXCEEDED, answers=tuple(answers))
        except (StreamTerminatedError, OSError) as error:
            return Outcome(Code.UNAVAILABLE, str(error), tuple(answers))
        return Outcome(Code.OK, "", tuple(answers), _pairs(stream.initial_metadata), _pairs(stream.trailing_metadata))

    async def leave(self) -> None:
        self._channel.close()


async def _send(stream: Any, call: Call) -> None:
    for message in call.messages:
        # The last message of a unary request ends it; one of a stream does so on a frame of its own.
        await stream.send_message(message, end=call.kind in ("unary", "server_stream"))
    if call.kind in ("client_stream", "bidi"):
        await stream.end()


def _pairs(metadata: Any) -> tuple[Pair, ...]:
    return tuple(metadata.items()) if metadata else ()


async def _answers(stream: Any) -> AsyncIterator[bytes]:
    while (answer := await stream.recv_message()) is not None:
        yield answer


def client_context(tls: Tls, protocols: Iterable[str] = ("h2",)) -> ssl.SSLContext:
    """What a client of Python's ssl module needs."""
    context = ssl.create_default_context(cadata=tls.ca.decode())
    context.set_alpn_protocols(list(protocols))
    if tls.version is not None:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[tls.version.replace(".", "_")]
    if tls.certificate is not None and tls.key is not None:
        with TemporaryDirectory() as folder:
            pair = Path(folder, "pair.pem")
            pair.write_bytes(tls.certificate + tls.key)
            context.load_cert_chain(pair)
    return context
