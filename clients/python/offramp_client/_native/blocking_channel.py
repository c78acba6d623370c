"""The blocking channel: what `offramp_client.Client` needs of grpcio's, on HTTP/2 of our own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from offramp_common.grpc_framing.messages import MessageBytes
from offramp_common.grpc_framing.status import CallFailed, Code

from offramp_client._native.calls import CANCELLED, interrupted
from offramp_client._native.exchange import Exchange, WaitedCall
from offramp_client._native.fields import Heads
from offramp_client._native.settings import Settings

_Metadata: TypeAlias = tuple[tuple[str, str], ...]

# What a client that streams may be ahead of its server.
_SEND_AHEAD = 64 * 1024


class Channel:
    """For any number of threads. Its calls raise CallFailed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._heads = Heads(settings.authority, settings.tls is not None)
        self._making = threading.Lock()
        self._exchange: Exchange | None = None

    def unary_unary(self, path: str) -> Callable[..., MessageBytes]:
        def ask(payload: bytes, *, timeout: float | None, metadata: _Metadata) -> MessageBytes:
            exchange = self._current()
            block = self._heads.block(path, metadata)
            call = WaitedCall(exchange.dispatch, block, payload, self._deadline(timeout), server_streaming=False)
            with exchange:
                try:
                    exchange.start(call)
                    exchange.wait(call, lambda: call.over)
                finally:
                    exchange.cancel(call)
            if call.failure is not None:
                raise call.failure
            return call.take()

        return ask

    def unary_stream(self, path: str) -> Callable[..., StreamCall]:
        def ask(payload: bytes, *, timeout: float | None, metadata: _Metadata) -> StreamCall:
            return self._stream(path, payload, timeout, metadata)

        return ask

    def stream_stream(self, path: str) -> Callable[..., StreamCall]:
        def ask(payloads: Iterator[bytes], *, timeout: float | None, metadata: _Metadata) -> StreamCall:
            call = self._stream(path, None, timeout, metadata)
            # As with grpcio: the iterator may wait for whatever it likes.
            try:
                threading.Thread(target=call.send_all, args=(payloads,), name="offramp-requests", daemon=True).start()
            except RuntimeError as error:
                call.cancel(interrupted(error))
                raise
            return call

        return ask

    def close(self) -> None:
        """Cancel what is in flight and give the connections back."""
        exchange = self._exchange
        if exchange is not None and not exchange.is_inherited:
            with exchange:
                exchange.close("the client was closed while the call was in flight")

    def _stream(self, path: str, payload: bytes | None, timeout: float | None, metadata: _Metadata) -> StreamCall:
        exchange = self._current()
        block = self._heads.block(path, metadata)
        call = WaitedCall(exchange.dispatch, block, payload, self._deadline(timeout), server_streaming=True)
        with exchange:
            exchange.start(call)
        return StreamCall(exchange, call)

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._settings.clock() + timeout

    def _current(self) -> Exchange:
        exchange = self._exchange
        return self._renewed() if exchange is None or exchange.is_inherited else exchange

    def _renewed(self) -> Exchange:
        """With the first call, and the first one in a process that was forked: connections belong to one process."""
        with self._making:
            exchange = self._exchange
            if exchange is not None and exchange.is_inherited:
                exchange.abandon()
                exchange = None
            if exchange is None:
                exchange = self._exchange = Exchange(self._settings)
            return exchange


class StreamCall:
    """A call of many answers: an iterator of them."""

    def __init__(self, exchange: Exchange, call: WaitedCall) -> None:
        self._exchange = exchange
        self._call = call

    def __iter__(self) -> StreamCall:
        return self

    def __next__(self) -> MessageBytes:
        """Raises CallFailed."""
        call, exchange = self._call, self._exchange
        if exchange.is_inherited:
            raise CallFailed(Code.CANCELLED, "the stream belongs to the process that this one was forked from")
        with exchange:
            exchange.wait(call, lambda: bool(call.messages) or call.over)
            if call.messages:
                try:
                    return call.take()
                finally:
                    exchange.settle()
        if call.failure is not None:
            raise call.failure
        raise StopIteration

    def cancel(self, why: str = CANCELLED) -> None:
        """After the end it does nothing, and in a process that was forked meanwhile neither: its parent reads on."""
        if self._exchange.is_inherited:
            return
        with self._exchange:
            self._exchange.cancel(self._call, why)

    def send_all(self, payloads: Iterator[bytes]) -> None:
        try:
            self._send_all(payloads)
        except BaseException as error:
            # Or the server would wait for more, and who reads the answers for the server.
            self.cancel(interrupted(error))
            if isinstance(error, Exception):
                raise

    def _send_all(self, payloads: Iterator[bytes]) -> None:
        call, exchange = self._call, self._exchange
        with exchange:
            exchange.wait(call, lambda: call.stream is not None or call.over)
        for payload in payloads:
            with exchange:
                call.send(payload)
                exchange.settle()
                exchange.wait(call, lambda: call.queued_bytes <= _SEND_AHEAD or call.over)
            if call.over:
                return
        with exchange:
            call.end_requests()
            exchange.settle()
