"""Clients in processes of their own that are told in lines of JSON what to call and say in such lines what came of it.

To them: {"do": "open", "channel": 1, "target": ..., "tls": {"ca": PEM, "certificate": ..., "key": ..., "version": ...},
"compression": "gzip", "options": {...}}, {"do": "begin", "id": 7, "channel": 1, "path": ..., "kind": ..., "messages":
[{"base64": ...} or {"file": PATH}], "metadata": [[key, value]], "timeout": SECONDS, "compression": "gzip",
"cancel_after_answers": N}, {"do": "cancel", "call": 7} and {"do": "close", "channel": 1}.
From them: once {"version": ...}, and for each call {"id": 7, "code": N, "message": ..., "answers": [as messages],
"initial": pairs, "trailing": pairs}. Values of -bin keys are in base64.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from calling import Call, Channel, Opening, Outcome, Pair, Pending, Tls
from eventually import PATIENCE
from offramp_server.transport.interface import Code

# What is larger goes by a file.
_MOST_IN_A_LINE = 32_768


class DrivenClient:
    """A driver that runs."""

    def __init__(self, command: Sequence[str]) -> None:
        self._folder = TemporaryDirectory(prefix="offramp-interop-")
        # gRPC's C++ writes what it cannot connect to, and grpc-js nothing.
        self._process = subprocess.Popen(
            [*command, self._folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.version = json.loads(self._process.stdout.readline())["version"]
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Outcome]] = {}
        self._lock = threading.Lock()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def open(self, opening: Opening) -> Channel:
        number = next(self._numbers)
        tls = None if opening.tls is None else _tls(opening.tls)
        more = {"compression": opening.compression, "options": dict(opening.options)}
        self.tell({"do": "open", "channel": number, "target": opening.target, "tls": tls, **more})
        return _DrivenChannel(self, number)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    def begin(self, channel: int, call: Call) -> Pending:
        number, future = next(self._numbers), Future[Outcome]()
        self._pending[number] = future
        self.tell({
            "do": "begin", "id": number, "channel": channel, "path": call.path, "kind": call.kind,
            "messages": [self._message(message, number) for message in call.messages],
            "metadata": [[key, _text(value)] for key, value in call.metadata],
            "timeout": call.timeout, "compression": call.compression,
            "cancel_after_answers": call.cancel_after_answers,
        })  # fmt: skip
        return Pending(future, lambda: self.tell({"do": "cancel", "call": number}))

    def tell(self, command: Mapping[str, Any]) -> None:
        line = json.dumps({key: value for key, value in command.items() if value is not None}) + "\n"
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _message(self, message: bytes, number: int) -> dict[str, str]:
        if len(message) <= _MOST_IN_A_LINE:
            return {"base64": base64.b64encode(message).decode()}
        path = Path(self._folder.name, f"request-{number}")
        path.write_bytes(message)
        return {"file": str(path)}

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self._pending.pop(int(said["id"])).set_result(_outcome(said))
        for future in self._pending.values():
            future.set_exception(RuntimeError("the client's process has ended"))


class _DrivenChannel:
    def __init__(self, client: DrivenClient, number: int) -> None:
        self._client = client
        self._number = number

    def begin(self, call: Call) -> Pending:
        return self._client.begin(self._number, call)

    def close(self) -> None:
        self._client.tell({"do": "close", "channel": self._number})


def _tls(tls: Tls) -> dict[str, str]:
    said = {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key}
    pem = {key: value.decode() for key, value in said.items() if value is not None}
    return pem | ({} if tls.version is None else {"version": tls.version})


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else base64.b64encode(value).decode()


def _outcome(said: Mapping[str, Any]) -> Outcome:
    answers = tuple(_answer(answer) for answer in said["answers"])
    initial, trailing = _pairs(said["initial"]), _pairs(said["trailing"])
    return Outcome(Code(int(said["code"])), said["message"], answers, initial, trailing)


def _answer(said: Mapping[str, str]) -> bytes:
    if "base64" in said:
        return base64.b64decode(said["base64"])
    path = Path(said["file"])
    answer = path.read_bytes()
    path.unlink()
    return answer


def _pairs(said: Sequence[Sequence[str]]) -> tuple[Pair, ...]:
    pairs = ((key, base64.b64decode(value) if key.endswith("-bin") else value) for key, value in said)
    return cast("tuple[Pair, ...]", tuple(pairs))
