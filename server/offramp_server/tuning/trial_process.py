"""The tuner's side of a trial: starts its process, talks to it, and tells how it ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offramp_server.engine_choice import EngineChoice
from offramp_server.tuning import guard
from offramp_server.tuning.disk_space import says_disk_full
from offramp_server.tuning.trial import Job, TimedOut, Trial, TrialFailed, TrialOptions
from offramp_server.workers.control import Message, encode, load_request_to_wire
from offramp_server.workers.environment import model_environment
from offramp_server.workers.host import Placement

TRIAL = (sys.executable, "-m", "offramp_server.tuning.trial_main")
MAX_REPLY_BYTES = 1 << 20
# A killed process may be deep inside a driver.
END_SECONDS = 5.0
MAX_LOG_BYTES = 10_000
# After "while ".
_DOING = MappingProxyType(
    {
        "build": "it was built",
        "load": "it was loaded",
        "write_answers": "it answered",
        "compare_answers": "it answered",
        "time": "it was timed",
        "unload": "it was unloaded",
    }
)


async def start_trial(options: TrialOptions, command: Sequence[str] = TRIAL) -> Trial:
    """Raises TrialFailed if there can be no process."""
    arguments = [f"--max-memory={options.max_memory}", *(["--in-background"] if options.in_background else [])]
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = _spawn([*command, *arguments], theirs, options.log)
        reader, writer = await _connected(ours, process)
    except OSError as error:
        ours.close()
        raise TrialFailed(f"could not be tried: no process can be started ({error})", passing=True) from error
    return TrialProcess(process, reader, writer, options)


async def _connected(
    ours: socket.socket, process: subprocess.Popen[bytes]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Or there is no process either."""
    try:
        return await asyncio.open_unix_connection(sock=ours, limit=MAX_REPLY_BYTES)
    except BaseException:
        ours.close()
        _kill(process)
        await _ended(process)
        raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its whole group. Whoever does so has to take leave of it as well, or it stays a zombie."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _ended(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, END_SECONDS)


def _spawn(command: Sequence[str], connection: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    """Not asyncio's: that of uvloop forks the whole front end, and the handlers of gRPC with it."""
    end = connection.fileno()
    with log.open("ab") as errors:
        return subprocess.Popen(
            command, env=model_environment(), stdin=end, stdout=end, stderr=errors, start_new_session=True
        )


class TrialProcess:
    """One process group: the guard, the trial, and what the trial starts."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        options: TrialOptions,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._options = options
        self._numbers = itertools.count(1)
        self._ended = False

    @property
    def alive(self) -> bool:
        return not self._ended

    async def build(self, job: Job, choice: EngineChoice, timeout: float) -> None:
        await self._ask(_request("build", 0, job, choice), timeout)

    async def load(self, number: int, job: Job, choice: EngineChoice, timeout: float) -> None:
        await self._ask(_request("load", number, job, choice), timeout)

    async def write_answers(self, number: int, folder: Path, timeout: float) -> None:
        await self._ask({"do": "write_answers", "handle": number, "folder": str(folder)}, timeout)

    async def compare_answers(self, number: int, folder: Path, timeout: float) -> float:
        message = {"do": "compare_answers", "handle": number, "folder": str(folder)}
        return float((await self._ask(message, timeout))["difference"])

    async def time(self, number: int, items: int, timeout: float) -> float:
        return float((await self._ask({"do": "time", "handle": number, "items": items}, timeout))["seconds"])

    async def unload(self, number: int, timeout: float) -> None:
        await self._ask({"do": "unload", "handle": number}, timeout)

    async def close(self) -> None:
        if not self._ended:
            self._ended = True
            _kill(self._process)
            self._writer.close()
        await _ended(self._process)

    async def _ask(self, message: Message, timeout: float) -> Message:
        if self._ended:
            raise TrialFailed("was ended before")
        number = next(self._numbers)
        try:
            async with asyncio.timeout(timeout):
                reply = await self._exchange({"id": number, **message})
        except TimeoutError:
            await self.close()
            raise TimedOut(f"was ended after {timeout:.3g} s while {_DOING[message['do']]}") from None
        except OSError:
            reply = {}
        if reply.get("id") != number:
            await self.close()
            raise self._end(reply, _DOING[message["do"]])
        if "error" in reply:
            raise TrialFailed(reply["error"], bool(reply.get("passing")), bool(reply.get("disk_full")))
        return reply

    async def _exchange(self, message: Message) -> Message:
        """The reply, or what the guard said last; nothing if nobody says anything any more."""
        with suppress(OSError):
            # If it has died, its last words are still there to be read.
            self._writer.write(encode(message))
            await self._writer.drain()
        last: Message = {}
        while line := await self._reader.readline():
            said = _parsed(line)
            if said.get("id") == message["id"]:
                return said
            last = said or last
        return last

    def _end(self, said: Message, doing: str) -> TrialFailed:
        what, number = said.get("ended"), said.get("number", 0)
        if what == guard.MEMORY:
            bound = _megabytes(self._options.max_memory)
            return TrialFailed(
                f"took {_megabytes(number)} of memory while {doing}, of {bound} that it may take", passing=True
            )
        if what == guard.EXIT:
            words = self._last_words()
            return TrialFailed(f"ended with exit code {number} while {doing}{words}", disk_full=says_disk_full(words))
        killed = number if what == guard.SIGNAL else signal.SIGKILL
        hint = ", which is how a system that runs out of memory ends it" if killed == signal.SIGKILL else ""
        return TrialFailed(f"crashed with {_name(killed)} while {doing}{hint}{self._last_words()}", passing=bool(hint))

    def _last_words(self) -> str:
        try:
            text = self._options.log.read_bytes()[-MAX_LOG_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f": {lines[-1][:300]}" if lines else ""


def _request(step: str, number: int, job: Job, choice: EngineChoice) -> Message:
    return load_request_to_wire(number, job.spec, Placement(job.device, job.threads, choice)) | {"do": step}


def _parsed(line: bytes) -> dict[str, Any]:
    """What cannot be read is what a process that died left half written."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
