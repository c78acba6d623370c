"""The front end's side of one worker process.

Batches go through shared slabs in strict turn, an eventfd counts them in each direction, and a socket pair carries
control messages and, by its end, the news of the worker's death: an eventfd has no end of file.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.batch import Batch, BatchSink
from offramp_server.scheduling.held import HeldMemory
from offramp_server.workers import frame
from offramp_server.workers.control import Message, encode, load_report_from_wire, load_request_to_wire
from offramp_server.workers.environment import model_environment
from offramp_server.workers.host import LoadReport, Placement
from offramp_server.workers.slab import Slab

SLABS = 3
# A reply on the control socket is one line; load reports are short.
MAX_REPLY_BYTES = 1 << 20
KILL_GRACE_SECONDS = 5.0
# How long a worker that is idle may keep what nobody needs any more. Before that, the next batch will mostly say so.
RELEASE_SECONDS = 0.05
STDERR = 2

log = logging.getLogger("offramp.workers")


class ProcessExecutor:
    """A worker process on one device. Reports to `sink`; `on_death` is called once, after the sink's `lost`."""

    slots = SLABS

    def __init__(
        self,
        name: str,
        sink: BatchSink,
        on_death: Callable[[ProcessExecutor, str], None],
        startup_timeout: float,
        hang_timeout: float,
        max_held_bytes: int,
        cpus: Sequence[int] = (),
        gpu_memory_share: float = 1.0,
    ) -> None:
        """`cpus` are the processors that the worker is to stay on; none: wherever it likes. `gpu_memory_share`: of its
        GPU's memory, what it may take."""
        self.name = name
        self._sink = sink
        self._on_death = on_death
        self._startup_timeout = startup_timeout
        self._hang_timeout = hang_timeout
        self._cpus = cpus
        self._gpu_memory_share = gpu_memory_share
        self._loop = asyncio.get_running_loop()
        self.held = HeldMemory(self._loop, max_held_bytes, self._let_go)
        # Numbers of batches whose outputs the worker need not keep, and does not know it yet.
        self._released: list[int] = []
        self._release_timer: asyncio.TimerHandle | None = None
        self._handles: set[int] = set()
        self._in_flight: deque[Batch] = deque()
        self._turn = 0
        self._finished = 0
        self._hang_timer: asyncio.TimerHandle | None = None
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._call_ids = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._slabs: list[Slab] = []
        self._requests = self._responses = -1
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._listener is not None and not self._listener.done()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def holds(self, handle: int) -> bool:
        return handle in self._handles

    # Life

    async def start(self) -> None:
        try:
            reader = await self._open()
        except OSError as error:
            # Too many files, too little memory: that passes, and the supervisor tries again.
            raise LoadError(f"worker {self.name} could not be started: {error}") from error
        self._loop.add_reader(self._responses, self._on_responses)
        self._listener = asyncio.create_task(self._listen(reader), name=f"{self.name} control")
        await self._call({"do": "ping"}, self._startup_timeout)

    async def _open(self) -> asyncio.StreamReader:
        """Whatever was opened before an error is closed by `close`, except the sockets, which are closed here."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._requests = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
                self._responses = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                for turn in range(SLABS):
                    self._slabs.append(Slab.create(f"offramp-{self.name}-{turn}"))
                self._process = self._spawn(theirs)
            reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_REPLY_BYTES)
        except BaseException:
            ours.close()
            raise
        return reader

    def _spawn(self, control: socket.socket) -> subprocess.Popen[bytes]:
        slabs = [slab.descriptor for slab in self._slabs]
        command = [sys.executable, "-m", "offramp_server.workers.process_main", f"--parent={os.getpid()}"]
        command += [f"--control={control.fileno()}", f"--requests={self._requests}", f"--responses={self._responses}"]
        command += [f"--slab={slab}" for slab in slabs]
        command += [f"--cpus={','.join(map(str, self._cpus))}"] if self._cpus else []
        command += [f"--gpu-memory-share={self._gpu_memory_share}"]
        inherited = (control.fileno(), self._requests, self._responses, *slabs)
        # Standard output is the front end's own: its ready line must stay alone there. A process group of its own
        # keeps the terminal's Ctrl-C away, since the front end drains before its workers stop.
        return subprocess.Popen(
            command,
            env=model_environment(),
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            process_group=0,
        )

    def kill(self, reason: str) -> None:
        """End the process now; its death is noticed and handled like any other."""
        log.warning("killing worker %s: %s", self.name, reason)
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
        self._release()
        await self._reap()

    async def _reap(self) -> str:
        """Kill the process and say how it ended. A process deep inside a driver may take its time to end, and the
        loop must not wait for it."""
        if self._process is None:
            return "not_started"
        self._process.kill()
        try:
            return _exit_reason(await asyncio.to_thread(self._process.wait, KILL_GRACE_SECONDS))
        except subprocess.TimeoutExpired:
            log.error("worker %s (process %s) does not end", self.name, self._process.pid)
            return "stuck"

    def _release(self) -> None:
        for timer in (self._hang_timer, self._release_timer):
            if timer is not None:
                timer.cancel()
        self._released = []
        if self._writer is not None:
            self._writer.close()
        if self._responses >= 0:
            self._loop.remove_reader(self._responses)
        for descriptor in (self._requests, self._responses):
            if descriptor >= 0:
                os.close(descriptor)
        self._requests = self._responses = -1
        for slab in self._slabs:
            slab.close()
        self._slabs = []

    def _died(self, reason: str) -> None:
        self._on_responses()
        batches, self._in_flight = list(self._in_flight), deque()
        computing = bool(batches) and frame.was_taken(self._slabs[self._finished])
        self._listener = None
        self._release()
        for call in self._calls.values():
            if not call.done():
                call.set_exception(LoadError(f"worker {self.name} died: {reason}"))
        self._sink.lost(self, batches, computing)
        self._on_death(self, reason)

    # Models

    async def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        reply = await self._call(load_request_to_wire(handle, spec, placement), self._startup_timeout)
        self._handles.add(handle)
        return load_report_from_wire(reply["report"])

    async def unload(self, handle: int) -> None:
        self._handles.discard(handle)
        await self._call({"do": "unload", "handle": handle}, self._startup_timeout)

    async def _call(self, message: Message, timeout: float) -> Message:
        if self._writer is None or not self.alive:
            raise LoadError(f"worker {self.name} is not running")
        call_id = next(self._call_ids)
        future = self._calls[call_id] = self._loop.create_future()
        self._writer.write(encode({"id": call_id, **message}))
        try:
            async with asyncio.timeout(timeout):
                reply: Message = await future
        except TimeoutError:
            # It could load and unload nothing any more, and would keep what it may have loaded meanwhile.
            self.kill(f"{message['do']} took longer than {timeout} s")
            raise LoadError(f"worker {self.name} did not answer within {timeout} s") from None
        finally:
            del self._calls[call_id]
        if "error" in reply:
            raise LoadError(reply["error"])
        return reply

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                reply = json.loads(line)
                future = self._calls.get(reply["id"])
                if future is not None and not future.done():
                    future.set_result(reply)
        except ConnectionError:
            # Another way to hear of its end.
            pass
        except Exception:
            log.exception("worker %s sent what is no control message", self.name)
        # The control socket closes a moment before the process can be reaped; it may also have closed by mistake.
        self._died(await self._reap())

    # Batches

    def submit(self, batch: Batch) -> None:
        """Raises nothing for a batch that cannot be laid out: that is reported to the sink like any failure."""
        slab = self._slabs[self._turn]
        released = self._released[: frame.MAX_RELEASES]
        try:
            frame.write_request(slab, batch.handle, batch.joined_inputs(), batch.keep, released)
        except (OSError, ValueError) as error:
            self._loop.call_soon(self._sink.failed, self, batch, f"the batch could not be handed over: {error}")
            return
        del self._released[: len(released)]
        self._turn = (self._turn + 1) % SLABS
        self._in_flight.append(batch)
        os.eventfd_write(self._requests, 1)
        self._watch_for_hang()

    def _on_responses(self) -> None:
        try:
            count = os.eventfd_read(self._responses)
        except BlockingIOError:
            return
        for _ in range(count):
            self._finish_one()
        self._watch_for_hang()
        self._release_later()

    def _finish_one(self) -> None:
        slab = self._slabs[self._finished]
        self._finished = (self._finished + 1) % SLABS
        batch = self._in_flight.popleft()
        try:
            outcome = frame.read_outcome(slab)
        except (ValueError, IndexError, struct.error) as error:
            if batch.keep is not None:
                self._let_go([batch.keep.number])
            self._sink.failed(self, batch, f"worker {self.name} wrote a broken answer: {error}")
            return
        if outcome.error is not None:
            self._sink.failed(self, batch, outcome.error)
        else:
            self._sink.completed(self, batch, outcome.outputs, outcome.timing)

    # What the worker keeps

    def _let_go(self, numbers: Sequence[int]) -> None:
        if self.alive:
            self._released += numbers
            self._release_later()

    def _release_later(self) -> None:
        """A worker that is idle has to be told by a message of its own."""
        if self._released and not self._in_flight and self._release_timer is None:
            self._release_timer = self._loop.call_later(RELEASE_SECONDS, self._release_now)

    def _release_now(self) -> None:
        self._release_timer = None
        if self._released and not self._in_flight and self._writer is not None:
            self._writer.write(encode({"id": next(self._call_ids), "do": "release", "kept": self._released}))
            self._released = []

    def _watch_for_hang(self) -> None:
        if self._hang_timer is not None:
            self._hang_timer.cancel()
            self._hang_timer = None
        if self._hang_timeout > 0 and self._in_flight:
            reason = f"a batch took longer than {self._hang_timeout} s"
            self._hang_timer = self._loop.call_later(self._hang_timeout, self.kill, reason)


def _exit_reason(code: int) -> str:
    return f"signal_{-code}" if code < 0 else f"exit_{code}"
