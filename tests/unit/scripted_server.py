"""A server that does with its connections whatever a test wants, byte by byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from eventually import PATIENCE
from hpack import Encoder
from http2_peer import Frame, data, read_frames
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode

HEAD = ((":status", "200"), ("content-type", "application/grpc"))


class Gone(Exception):
    """The client has closed the connection."""


class Conversation:
    """One connection."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.heard: list[Frame] = []
        self._encoder = Encoder()
        self._rest = b""

    def greet(self, *settings: tuple[int, int]) -> None:
        while len(self._rest) < len(frames.PREFACE):
            self._rest += self._receive()
        assert self._rest.startswith(frames.PREFACE)
        self._rest = self._rest[len(frames.PREFACE) :]
        self.say(frames.settings(settings))

    def say(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def hear(self, kind: int) -> Frame:
        """The next frame of that kind. Raises Gone."""
        while True:
            frame = self._next()
            self.heard.append(frame)
            if frame.kind == kind:
                return frame

    def request(self) -> int:
        """The number of the next stream, once all of its request has come."""
        while True:
            frame = self.hear(frames.DATA)
            if frame.flags & frames.END_STREAM:
                return frame.stream

    def until_gone(self) -> None:
        try:
            while True:
                self.heard.append(self._next())
        except Gone:
            pass

    def fields(self, number: int, *fields: tuple[str, str], ended: bool = False) -> bytes:
        return b"".join(frames.headers(number, bytes(self._encoder.encode(fields)), ended))

    def answer(self, number: int, *messages: bytes, status: str = "0") -> None:
        self.say(
            self.fields(number, *HEAD),
            *(data(number, b"\0" + len(message).to_bytes(4) + message) for message in messages),
            self.fields(number, ("grpc-status", status), ended=True),
        )

    def _next(self) -> Frame:
        while True:
            if len(self._rest) >= frames.HEADER_BYTES:
                high, low, *_ = frames.HEADER.unpack_from(self._rest)
                end = frames.HEADER_BYTES + (high << 16 | low)
                if len(self._rest) >= end:
                    frame, self._rest = self._rest[:end], self._rest[end:]
                    return next(read_frames(frame))
            self._rest += self._receive()

    def _receive(self) -> bytes:
        try:
            came = self.socket.recv(65536)
        except ConnectionError:
            raise Gone from None
        if not came:
            raise Gone
        return came


Script: TypeAlias = Callable[[Conversation], None]


class ScriptedServer:
    """Plays a script for each connection, in their order and each in a thread. Use it as a context manager.

    A script's connection is closed when it ends. What it raises is raised at the end, except that the client has gone.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self._errors: list[BaseException] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._over = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> ScriptedServer:
        self._threads[0].start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True
        with suppress(OSError), socket.create_connection(self._listening.getsockname()):
            """For who still waits for somebody to come."""
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listening.close()
        for error in self._errors:
            raise error

    def _accept(self) -> None:
        for script in self._scripts:
            opened, _ = self._listening.accept()
            if self._over:
                opened.close()
                return
            opened.settimeout(PATIENCE)
            self._threads.append(threading.Thread(target=self._play, args=(script, opened), daemon=True))
            self._threads[-1].start()

    def _play(self, script: Script, opened: socket.socket) -> None:
        try:
            with opened:
                script(Conversation(opened))
        except Gone:
            pass
        except BaseException as error:
            self._errors.append(error)


def reset(number: int, code: ErrorCode) -> bytes:
    return frames.rst_stream(number, code)
