"""What a tuner asks of the process in which a candidate is tried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import ModelSpec


class TrialFailed(Exception):
    """A candidate cannot be used. The message is a sentence without its subject: "crashed with SIGSEGV while ..."."""

    def __init__(self, message: str, passing: bool = False, disk_full: bool = False) -> None:
        super().__init__(message)
        # Whether it was for want of time, memory, disk space or a compiler, which may be there another time.
        self.passing = passing or disk_full
        self.disk_full = disk_full


class TimedOut(TrialFailed):
    """A step took longer than it may."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be tuned."""

    spec: ModelSpec
    # cpu | cuda:N
    device: str
    # Intra-op threads that a worker may use, at least 1.
    threads: int


class Trial(Protocol):
    """One process. Every step raises TrialFailed: for an error of the engine, and where the process dies, takes longer
    than `timeout` seconds or more memory than it may. In the last three cases the process is gone."""

    @property
    def alive(self) -> bool: ...

    async def build(self, job: Job, choice: EngineChoice, timeout: float) -> None:
        """Into `choice.artifacts`, an empty folder."""
        ...

    async def load(self, number: int, job: Job, choice: EngineChoice, timeout: float) -> None:
        """Load and warm up. `number` is what the other steps call it by."""
        ...

    async def write_answers(self, number: int, folder: Path, timeout: float) -> None:
        """To made-up inputs, for other trials to compare theirs with."""
        ...

    async def compare_answers(self, number: int, folder: Path, timeout: float) -> float:
        """The largest difference from what is written there, relative to the largest value."""
        ...

    async def time(self, number: int, items: int, timeout: float) -> float:
        """Seconds for a batch of so many items: the fastest of a few runs."""
        ...

    async def unload(self, number: int, timeout: float) -> None: ...

    async def close(self) -> None:
        """End it, with every process that it has started."""
        ...


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """How a trial's process is to run."""

    # A file for what it says on standard error, of which the last line may be told.
    log: Path
    # True: others come first, for what may take long and is not timed.
    in_background: bool = False
    # Resident memory of all its processes together, in bytes; 0: as much as there is.
    max_memory: int = 0


StartTrial = Callable[[TrialOptions], Awaitable[Trial]]
