"""Finds the fastest engine for a model on this machine, by trying those that there are."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from offramp_common.engine_names import ENGINES

from offramp_server.config import TuningSettings
from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.machine.memory import read_memory
from offramp_server.model_spec import ModelSpec
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.cache import EngineCache
from offramp_server.tuning.choosing import (
    because_measured,
    because_trivial,
    full_batch,
    is_trivial,
    thread_counts,
    winner,
)
from offramp_server.tuning.contest import Contest, ContestOptions
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.key import TuningKey
from offramp_server.tuning.leftovers import temporary_folder_beside_the_loop
from offramp_server.tuning.threads import undone_if_cancelled
from offramp_server.tuning.trial import Job, StartTrial, TrialFailed
from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.engines.load import ASKED_FOR

# Of the memory that is free when a trial starts, what it may take. Others of the same tuning hold theirs already.
SHARE_OF_FREE_MEMORY = 0.5
# In the folder for temporary files.
SCRATCH = "offramp-tuning-"

log = logging.getLogger("offramp.engines")


@dataclass(frozen=True, slots=True)
class Candidates:
    """What `auto` may take for a model, in order of preference, the plain engine first."""

    choices: tuple[EngineChoice, ...]
    # By name, engines that would be among them if something were installed, and what.
    absent: dict[str, str]


def candidates(spec: ModelSpec, device: str, kinds: Sequence[EngineKind]) -> Candidates:
    plain = plain_engine(spec)
    choices, absent = [plain], {}
    for kind in kinds:
        if kind.name not in ENGINES[spec.format] or kind.refusal(spec, device):
            continue
        variants = [EngineChoice(kind.name, variant) for variant in kind.variants(spec, device)]
        lacking = kind.missing(device) if variants else ""
        if lacking:
            absent[kind.name] = lacking
        else:
            choices += [choice for choice in variants if choice != plain]
    return Candidates(tuple(choices), absent)


def plain_engine(spec: ModelSpec) -> EngineChoice:
    """What runs the format as it is: all others are compared with its answers."""
    return EngineChoice(ENGINES[spec.format][0])


class Tuner:
    """To be asked one thing at a time: two tunings would measure each other."""

    def __init__(
        self,
        settings: TuningSettings,
        cache: EngineCache,
        stats: Stats,
        start_trial: StartTrial,
        kinds: Sequence[EngineKind],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._settings = settings
        self._cache = cache
        self._stats = stats
        self._start_trial = start_trial
        self._kinds = kinds

    async def tune(self, job: Job, key: TuningKey, budget: float | None) -> Decision:
        """Try whatever `auto` may take. `budget`: seconds, None: as many as it needs.

        Raises TrialFailed if not even the plain engine could be tried.
        """
        async with self._contest(job, key, budget) as contest:
            self._stats.engine_tunings[job.spec.name] += 1
            found = candidates(job.spec, job.device, self._kinds)
            plain = found.choices[0]
            contest.rejected |= found.absent
            await contest.begin(plain)
            seconds = contest.measured[plain.label].full
            if is_trivial(job.spec, {full_batch(job.spec): seconds}):
                return Decision(replace(plain, reason=because_trivial(job.spec, seconds)), contest.measured)
            for choice in found.choices[1:]:
                await contest.enter(choice)
            await contest.compare_the_best()
            chosen = contest.choice(winner(contest.measured)) if contest.measured else plain
            return await self._decided(job, contest, chosen, plain)

    async def _decided(self, job: Job, contest: Contest, chosen: EngineChoice, plain: EngineChoice) -> Decision:
        if chosen.label not in contest.measured:
            raise TrialFailed(contest.rejected.get(plain.label, "could not be timed"))
        by_threads = await contest.by_threads(chosen, threads_to_try(job))
        reason = because_measured(job.spec, chosen.label, plain.label, contest.measured)
        contest.keep(chosen)
        return Decision(
            replace(chosen, reason=reason, measured=contest.seconds(), rejected=dict(contest.rejected)),
            dict(contest.measured),
            by_threads,
            contest.complete,
            contest.disk_full,
        )

    async def build(self, job: Job, key: TuningKey, choice: EngineChoice) -> Decision:
        """Build what was asked for by name, and see that it answers as the plain engine does. Raises LoadError."""
        try:
            async with self._contest(job, key, None) as contest:
                return await _built(job, contest, choice)
        except OSError as error:
            raise _refusal(job, choice, f"could not be built: {error}") from error

    @asynccontextmanager
    async def _contest(self, job: Job, key: TuningKey, budget: float | None) -> AsyncIterator[Contest]:
        async with temporary_folder_beside_the_loop(SCRATCH) as folder:
            contest = Contest(
                job,
                self._kinds,
                self._start_trial,
                ContestOptions(folder, self._settings.candidate_timeout, budget, self._max_memory, self._now),
                _Builds(self._cache, key, job.spec, self._stats),
            )
            try:
                yield contest
            finally:
                await contest.close()

    def _max_memory(self) -> int:
        if self._settings.max_memory_bytes:
            return self._settings.max_memory_bytes
        available = read_memory().available
        # Where nothing is free, 0 would be no limit.
        return 0 if available is None else max(1, int(available * SHARE_OF_FREE_MEMORY))


async def _built(job: Job, contest: Contest, choice: EngineChoice) -> Decision:
    """Raises LoadError."""
    plain = plain_engine(job.spec)
    try:
        await contest.begin(plain)
    except TrialFailed as error:
        raise _refusal(job, choice, f"cannot be checked, as {plain.label} {error}") from error
    await contest.enter(choice)
    if choice.label not in contest.measured:
        raise _refusal(job, choice, contest.rejected[choice.label])
    built = contest.choice(choice.label)
    contest.keep(built)
    return Decision(replace(built, reason=ASKED_FOR, measured=contest.seconds()), dict(contest.measured))


def _refusal(job: Job, choice: EngineChoice, why: str) -> LoadError:
    return LoadError(f'model "{job.spec.name}": engine "{choice.label}" {why}')


def threads_to_try(job: Job) -> list[int]:
    """None where model.toml says how many, or where they hardly compute."""
    engine = job.spec.engine
    return [] if engine.threads or engine.instances or job.device != "cpu" else thread_counts(job.threads)


class _Builds:
    """Where candidates are built, and how often."""

    def __init__(self, cache: EngineCache, key: TuningKey, spec: ModelSpec, stats: Stats) -> None:
        self._cache = cache
        self._key = key
        self._model = spec.name
        self._stats = stats

    async def begin(self, label: str) -> Path:
        """Raises OSError."""
        self._stats.engine_builds[self._model] += 1
        make = functools.partial(self._cache.new_artifacts, self._key, label)
        return await undone_if_cancelled(make, self._cache.discard)

    async def discard(self, artifacts: Path) -> None:
        await asyncio.to_thread(self._cache.discard, artifacts)
