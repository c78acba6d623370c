"""One tuning: candidates enter, each in a trial of its engine, and those that are about as fast meet again.

What a candidate does to its process ends its own part and nobody else's: variants of the same engine that were there
with it are loaded into a new process when their turn comes.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from offramp_server.engine_choice import EngineChoice
from offramp_server.tuning.choosing import contenders, full_batch
from offramp_server.tuning.decision import Measurement
from offramp_server.tuning.disk_space import is_disk_full
from offramp_server.tuning.trial import Job, StartTrial, TimedOut, Trial, TrialFailed, TrialOptions
from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.engines.parity import tolerance

# A first look is repeated until the two fastest agree so far: while others use the machine, threads that wait for each
# other take a hundred times as long.
STEADY = 0.1
MOST_LOOKS = 5
# Between them, so that whoever else computes may be done.
PAUSE_SECONDS = 0.2
# After which no further look begins.
LOOKS_SECONDS = 2.0
# Rounds in which the best are timed in turn, so that other load on the machine meets all of them alike.
ROUNDS = 5
LEAST_ROUNDS = 2
# After which no further round begins.
ROUNDS_SECONDS = 6.0
# For letting go of a candidate, even if the budget is over: a process that can do so need not be ended.
UNLOAD_SECONDS = 1.0


class Builds(Protocol):
    async def begin(self, label: str) -> Path:
        """An empty folder. Raises OSError."""
        ...

    async def discard(self, artifacts: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class ContestOptions:
    # For answers to compare and for logs; somebody else deletes it.
    folder: Path
    # Seconds for one step of one candidate.
    step_timeout: float
    # Seconds for everything; None: no limit.
    budget: float | None
    # Asked as a trial starts: the bytes that it may take; 0: no limit.
    max_memory: Callable[[], int]
    # Seconds, of a clock that never goes back.
    now: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class _Entrant:
    choice: EngineChoice
    number: int
    # Intra-op threads, where they are not those of the job.
    threads: int = 0
    # The trial that has it loaded.
    trial: Trial | None = None


class _OutOfTime(TrialFailed):
    """The budget is over."""


class Contest:
    """Close it, whatever happened."""

    def __init__(
        self,
        job: Job,
        kinds: Sequence[EngineKind],
        start_trial: StartTrial,
        options: ContestOptions,
        builds: Builds,
    ) -> None:
        # By label, in the order in which they entered.
        self.measured: dict[str, Measurement] = {}
        self.rejected: dict[str, str] = {}
        # Whether nothing was left out for want of time, memory, disk space or a compiler.
        self.complete = True
        self.disk_full = False
        self._job = job
        self._kinds = {kind.name: kind for kind in kinds}
        self._start_trial = start_trial
        self._options = options
        self._builds = builds
        self._started_at = options.now()
        self._entrants: dict[str, _Entrant] = {}
        # By engine.
        self._trials: dict[str, Trial] = {}
        self._numbers = itertools.count(1)
        self._built: list[Path] = []

    # Results

    def choice(self, label: str) -> EngineChoice:
        return self._entrants[label].choice

    def seconds(self) -> dict[str, float]:
        """For a full batch."""
        return {label: each.full for label, each in self.measured.items()}

    def keep(self, choice: EngineChoice) -> None:
        """What was built for it stays."""
        self._built = [artifacts for artifacts in self._built if artifacts != choice.artifacts]

    async def close(self) -> None:
        for trial in self._trials.values():
            await trial.close()
        for artifacts in self._built:
            await self._builds.discard(artifacts)

    # What happens

    async def begin(self, plain: EngineChoice) -> None:
        """The plain engine comes first. Raises TrialFailed: then there is nothing to compare with."""
        entrant = self._entrants[plain.label] = _Entrant(plain, next(self._numbers))
        try:
            trial = await self._loaded(entrant)
            await trial.write_answers(entrant.number, self._options.folder, self._timeout())
            self.measured[plain.label] = await self._steadily_timed(entrant)
        except TimedOut as error:
            raise self._with_budget(error) from error

    async def enter(self, choice: EngineChoice) -> None:
        """It is measured then, or rejected."""
        if self._time_left() <= 0:
            self._reject(choice.label, self._out_of_time("was not tried"))
            return
        try:
            entrant = self._entrants[choice.label] = _Entrant(await self._ready(choice), next(self._numbers))
            difference = await self._difference(entrant)
            self.measured[choice.label] = replace(await self._steadily_timed(entrant), difference=difference)
        except TrialFailed as error:
            self._reject(choice.label, error)

    async def compare_the_best(self) -> None:
        """Time those that are about as fast as the best, in turn. The others let go of their memory."""
        finalists = [self._entrants[label] for label in contenders(self.measured)]
        await self._let_go_of_all_but(finalists)
        if len(finalists) > 1:
            await self._in_turn(finalists)

    async def by_threads(self, choice: EngineChoice, counts: Sequence[int]) -> dict[int, Measurement]:
        """How long the choice takes with so many threads. Nothing if not all of them can be timed: those that are
        missing might be the better ones. No two of them are loaded at once, for what the model takes of memory."""
        if len(counts) < 2:
            return {}
        await self._let_go_of_all_but([])
        entrants = {count: _Entrant(choice, next(self._numbers), threads=count) for count in counts}
        measured: dict[int, Measurement] = {}
        try:
            for _ in self._rounds():
                for count, entrant in entrants.items():
                    now = await self._timed(entrant)
                    measured[count] = _better(measured.get(count, now), now)
                    await self._let_go_of(entrant)
        except TrialFailed as error:
            if len(measured) < len(counts):
                self.complete = self.complete and not self._with_budget(error).passing
        return measured if len(measured) == len(counts) else {}

    async def _in_turn(self, entrants: Sequence[_Entrant]) -> None:
        for _ in self._rounds():
            for entrant in entrants:
                label = entrant.choice.label
                if label in self.measured:
                    try:
                        self.measured[label] = _better(self.measured[label], await self._timed(entrant))
                    except TrialFailed as error:
                        # That the budget is over is not its fault, and what is known of it counts. Whatever else ended
                        # it, the memory that it takes above all, would end a worker.
                        if not isinstance(self._with_budget(error), _OutOfTime):
                            del self.measured[label]
                            self._reject(label, error)

    def _rounds(self) -> Iterator[int]:
        """As many as there is time for."""
        started = self._options.now()
        for number in range(ROUNDS):
            late = self._options.now() - started > ROUNDS_SECONDS or self._time_left() <= 0
            if late and number >= LEAST_ROUNDS:
                return
            yield number

    # Steps

    async def _ready(self, choice: EngineChoice) -> EngineChoice:
        """With what it needs built, in a process of its own that others come before."""
        if not self._kinds[choice.backend].builds(self._job.spec):
            return choice
        try:
            choice = replace(choice, artifacts=await self._builds.begin(choice.label))
        except OSError as error:
            raise TrialFailed(f"could not be built: {error}", True, is_disk_full(error)) from error
        assert choice.artifacts is not None
        self._built.append(choice.artifacts)
        trial = await self._started(choice.backend, in_background=True)
        try:
            await trial.build(self._job, choice, self._timeout())
        finally:
            await trial.close()
        return choice

    async def _difference(self, entrant: _Entrant) -> float:
        trial = await self._loaded(entrant)
        difference = await trial.compare_answers(entrant.number, self._options.folder, self._timeout())
        allowed = tolerance(self._job.spec)
        # Not a number is not within it either.
        if not difference <= allowed:
            raise TrialFailed(
                f"answers differently: by {difference:.3g} of the largest value, where {allowed:g} is tolerated"
            )
        return difference

    async def _steadily_timed(self, entrant: _Entrant) -> Measurement:
        started = self._options.now()
        looks = [await self._timed(entrant)]
        while len(looks) < MOST_LOOKS and not _agree(looks):
            taken = self._options.now() - started
            if taken > min(LOOKS_SECONDS, self._time_left() / 2):
                break
            await asyncio.sleep(PAUSE_SECONDS if len(looks) > 1 else 0)
            looks.append(await self._timed(entrant))
        return functools.reduce(_better, looks)

    async def _timed(self, entrant: _Entrant) -> Measurement:
        trial = await self._loaded(entrant)
        first = await trial.time(entrant.number, 1, self._timeout())
        items = full_batch(self._job.spec)
        return Measurement(first, first if items == 1 else await trial.time(entrant.number, items, self._timeout()))

    async def _loaded(self, entrant: _Entrant) -> Trial:
        """Its trial. It is loaded there unless it is already; another candidate may have ended the process."""
        if entrant.trial is None or not entrant.trial.alive:
            trial = self._trials.get(entrant.choice.backend)
            if trial is None or not trial.alive:
                trial = self._trials[entrant.choice.backend] = await self._started(entrant.choice.backend)
            job = replace(self._job, threads=entrant.threads or self._job.threads)
            await trial.load(entrant.number, job, entrant.choice, self._timeout())
            entrant.trial = trial
        return entrant.trial

    async def _let_go_of_all_but(self, wanted: Sequence[_Entrant]) -> None:
        engines = {entrant.choice.backend for entrant in wanted}
        for backend in [each for each in self._trials if each not in engines]:
            await self._trials.pop(backend).close()
        for entrant in self._entrants.values():
            if entrant not in wanted:
                await self._let_go_of(entrant)

    async def _let_go_of(self, entrant: _Entrant) -> None:
        trial, entrant.trial = entrant.trial, None
        if trial is not None and trial.alive:
            # What cannot even be unloaded is ended, and does not matter any more.
            await _quietly_unloaded(trial, entrant.number, self._unload_timeout())

    async def _started(self, backend: str, in_background: bool = False) -> Trial:
        log = self._options.folder / f"{backend}-{next(self._numbers)}.log"
        return await self._start_trial(TrialOptions(log, in_background, self._options.max_memory()))

    # Time

    def _time_left(self) -> float:
        """Seconds."""
        budget = self._options.budget
        return math.inf if budget is None else budget - (self._options.now() - self._started_at)

    def _timeout(self) -> float:
        """For the next step. Raises TrialFailed if there is no time left."""
        if self._time_left() <= 0:
            raise self._out_of_time("was not finished")
        return min(self._options.step_timeout, self._time_left())

    def _unload_timeout(self) -> float:
        return min(self._options.step_timeout, max(UNLOAD_SECONDS, self._time_left()))

    def _reject(self, label: str, error: TrialFailed) -> None:
        error = self._with_budget(error)
        self.complete = self.complete and not error.passing
        self.disk_full = self.disk_full or error.disk_full
        self.rejected[label] = str(error).removeprefix(f'model "{self._job.spec.name}": ')

    def _with_budget(self, error: TrialFailed) -> TrialFailed:
        """The same, and that it was the budget that was over."""
        return self._out_of_time(str(error)) if isinstance(error, TimedOut) and self._time_left() <= 0 else error

    def _out_of_time(self, what: str) -> TrialFailed:
        return _OutOfTime(
            f"{what}: the {self._options.budget:g} s for choosing an engine were over; "
            '"offramp tune" without --budget takes the time that it needs',
            passing=True,
        )


async def _quietly_unloaded(trial: Trial, number: int, timeout: float) -> None:
    try:
        await trial.unload(number, timeout)
    except TrialFailed:
        await trial.close()


def _agree(looks: Sequence[Measurement]) -> bool:
    """Whether the fastest was seen twice."""
    for seconds in (sorted(each.first for each in looks), sorted(each.full for each in looks)):
        if len(looks) < 2 or seconds[1] > seconds[0] * (1 + STEADY):
            return False
    return True


def _better(before: Measurement, now: Measurement) -> Measurement:
    """Other load only ever adds to the time that an engine takes."""
    return replace(before, first=min(before.first, now.first), full=min(before.full, now.full))
