"""What a call costs the thread that serves, but for its sockets: `python -m benchmarks.call_path`.

A whole server in this process, with an identity model in a thread of it, is fed by hand: on each of c connections the
bytes of one call, then turns of the loop until all are answered. The kernel and the client have no part in it, so the
shortest of many short rounds says what the code takes, also on a machine that is not quiet. Run it in two checkouts in
turns to compare them.

Calls are alike, as those of one client are, or each has a field that nobody knows with a value of its own, so that
nothing of it was read before (docs/adr/0019).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpack import Encoder
from offramp_common.http2 import frames
from offramp_server.app import Server
from offramp_server.collector import spare_what_stays
from offramp_server.config import ServerSettings, Settings, WorkerSettings
from offramp_server.event_loop import event_loop_factory
from offramp_server.telemetry import logs
from offramp_server.transport.native.connection import Connection

from benchmarks.harness.tables import table
from benchmarks.harness.workloads import load_workload
from benchmarks.servers.offramp import write_model

_FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/inference.GRPCInferenceService/ModelInfer"),
    (":authority", "localhost:8001"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
_STATUS, _OK = b"grpc-status", b"grpc-status\x010"
_WINDOW = 2**30
_WARM_UP = 50
# Field 15, a varint of two bytes.
_UNKNOWN = b"\x78"


class Wire(asyncio.Transport):
    """Takes what a connection writes, and counts the answers."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.answers = self.failures = 0

    def write(self, data: Any) -> None:
        if _STATUS in data:
            self.answers += 1
            self.failures += _OK not in data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class Caller:
    """One connection with a call at a time on it."""

    def __init__(self, connect: Callable[[], Connection], message: bytes, alike: bool) -> None:
        self.wire = Wire()
        self._connection = connect()
        self._connection.connection_made(self.wire)
        self._connection.data_received(frames.PREFACE + frames.settings(((frames.INITIAL_WINDOW_SIZE, _WINDOW),)))
        self._encoder = Encoder()
        self._message = message
        self._alike = alike
        self._calls = 0

    def call(self) -> None:
        number = 2 * self._calls + 1
        self._calls += 1
        message = self._message
        if not self._alike:
            message += _UNKNOWN + bytes((0x80 | self._calls & 0x7F, self._calls >> 7 & 0x7F))
        head = b"".join(frames.headers(number, self._encoder.encode(_FIELDS), end_stream=False))
        data = frames.header(frames.DATA, frames.END_STREAM, number, 5 + len(message))
        # More than the answer takes.
        room = frames.window_update(0, 2 * len(message))
        self._connection.data_received(head + data + bytes(1) + len(message).to_bytes(4) + message + room)

    def hang_up(self) -> None:
        self._connection.connection_lost(None)

    @property
    def waits(self) -> bool:
        return self.wire.answers < self._calls


@dataclass(frozen=True)
class Figures:
    """Microseconds of CPU a call."""

    least: float
    median: float


async def measure(callers: int, calls: int, rounds: int) -> dict[str, Figures]:
    """By kind of calls, in turns."""
    with tempfile.TemporaryDirectory(prefix="offramp-call-path-") as folder:
        workload = load_workload("identity", "onnxruntime")
        write_model(workload, "onnxruntime", Path(folder, workload.model), None)
        settings = Settings(server=ServerSettings(grpc_port=0, http_port=0), workers=WorkerSettings(mode="in-process"))
        server = Server(Path(folder), settings, logs.install(logs.LEVELS["error"], "text"))
        await server.open()
        spare_what_stays()
        await server.load()
        connect = lambda: Connection(server._transport._shared)  # type: ignore[attr-defined]  # noqa: E731
        kinds = {
            kind: [Caller(connect, workload.request(0), alike) for _ in range(callers)]
            for kind, alike in (("alike", True), ("unlike", False))
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 1):
            for kind, those in kinds.items():
                took = await _round(those, calls if number else max(calls, _WARM_UP))
                seconds[kind].append(took)
        _end(kinds)
        await server.close()
    return {
        kind: Figures(min(took[1:]) / calls / callers * 1e6, statistics.median(took[1:]) / calls / callers * 1e6)
        for kind, took in seconds.items()
    }


async def _round(callers: Sequence[Caller], calls: int) -> float:
    """Seconds of CPU."""
    began = time.process_time()
    for _ in range(calls):
        for caller in callers:
            caller.call()
        # An event would cost as much as what is measured.
        while any(caller.waits for caller in callers):  # noqa: ASYNC110
            await asyncio.sleep(0)
    return time.process_time() - began


def _end(kinds: dict[str, list[Caller]]) -> None:
    for callers in kinds.values():
        for caller in callers:
            caller.hang_up()
            if caller.wire.failures:
                raise SystemExit(f"{caller.wire.failures} calls failed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.call_path", description=__doc__)
    parser.add_argument("--callers", type=int, nargs="+", default=(1, 32))
    parser.add_argument("--calls", type=int, default=160, help="of a round, by all callers together, about")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    rows = []
    for callers in options.callers:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            found = runner.run(measure(callers, max(1, options.calls // callers), options.rounds))
        rows += [[str(callers), kind, f"{each.least:.1f}", f"{each.median:.1f}"] for kind, each in found.items()]
    print(table(["callers", "calls are", "CPU us a call, least", "median"], rows))


if __name__ == "__main__":
    main()
