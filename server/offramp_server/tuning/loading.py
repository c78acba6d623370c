"""Loads a model into the workers of its device, with the engine that was found for it.

A model that was never seen on this machine is loaded into its plain engine first: whatever goes wrong while others are
tried, it is served.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Protocol

from offramp_common.engine_names import AUTO

from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial import Job
from offramp_server.workers.engines.load import plain_choice
from offramp_server.workers.host import LoadReport

log = logging.getLogger("offramp.engines")


class Workers(Protocol):
    """Those of one device (`workers.group.WorkerGroup`)."""

    @property
    def device(self) -> str: ...

    def threads_by_itself(self, spec: ModelSpec) -> int:
        """Intra-op threads of a worker that has this model alone."""
        ...

    async def load(
        self,
        handle: int,
        spec: ModelSpec,
        choice: EngineChoice | None = None,
        seconds_by_threads: Mapping[int, float] | None = None,
    ) -> LoadReport: ...

    async def unload(self, handle: int) -> None: ...

    async def explain(self, handle: int, choice: EngineChoice) -> LoadReport:
        """The model stays in the engine that it has; what is said of it is what the choice says."""
        ...


class _Refused(LoadError):
    """What was remembered could not be loaded."""

    def __init__(self, decision: Decision, error: LoadError) -> None:
        super().__init__(str(error))
        self.decision = decision


class EngineLoader:
    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._handles = itertools.count(1)
        # What the workers hold, by handle.
        self._decisions: dict[int, Decision] = {}

    async def load(self, workers: Workers, spec: ModelSpec) -> tuple[int, LoadReport]:
        """The model's handle in the workers, and what its load came to. Raises LoadError, and then no worker holds
        it."""
        job = Job(spec, workers.device, workers.threads_by_itself(spec))
        try:
            return await self._known_or_found(workers, job)
        except _Refused as refused:
            # A worker that was killed, or that took too long, says nothing of the engine.
            log.warning('model "%s": the engine that is remembered is loaded once more: %s', spec.name, refused)
        try:
            return await self._known_or_found(workers, job)
        except _Refused as refused:
            log.warning('model "%s": the engine that is remembered cannot be loaded: %s', spec.name, refused)
            return await self._without(workers, job, refused)

    async def unload(self, workers: Workers, handle: int) -> None:
        await workers.unload(handle)
        decision = self._decisions.pop(handle, None)
        if decision is not None:
            await self._engines.release(decision)

    async def _known_or_found(self, workers: Workers, job: Job) -> tuple[int, LoadReport]:
        """Raises _Refused if it is what was remembered that cannot be loaded."""
        decision = await self._engines.first(job)
        if decision is None:
            return await self._by_way_of_plain(workers, job)
        try:
            return await self._into(workers, job, decision)
        except LoadError as error:
            if decision.remembered:
                raise _Refused(decision, error) from error
            raise

    async def _without(self, workers: Workers, job: Job, refused: _Refused) -> tuple[int, LoadReport]:
        if job.spec.engine.backend == AUTO:
            return await self._by_way_of_plain(workers, job, refused)
        return await self._into(workers, job, await self._engines.rebuilt(job))

    async def _by_way_of_plain(
        self, workers: Workers, job: Job, refused: _Refused | None = None
    ) -> tuple[int, LoadReport]:
        handle, report = await self._into(workers, job, Decision(plain_choice(job.spec)))
        try:
            return await self._improved(workers, job, handle, report, refused)
        except BaseException:
            await self.unload(workers, handle)
            raise

    async def _improved(
        self, workers: Workers, job: Job, handle: int, report: LoadReport, refused: _Refused | None
    ) -> tuple[int, LoadReport]:
        seconds = report.seconds_by_items
        if refused is None:
            decision = await self._engines.better(job, seconds)
        else:
            decision = await self._engines.instead_of(job, refused.decision, refused, seconds)
        if _is_plain(decision, job.spec):
            return handle, await workers.explain(handle, decision.choice)
        try:
            better = await self._into(workers, job, decision)
        except LoadError as error:
            kept = await self._engines.could_not_load(job, decision, error)
            return handle, await workers.explain(handle, kept.choice)
        try:
            await self.unload(workers, handle)
        except BaseException:
            await self.unload(workers, better[0])
            raise
        return better

    async def _into(self, workers: Workers, job: Job, decision: Decision) -> tuple[int, LoadReport]:
        handle = next(self._handles)
        seconds = {threads: each.score for threads, each in decision.by_threads.items()}
        try:
            report = await workers.load(handle, job.spec, decision.choice, seconds)
        except BaseException:
            await self._engines.release(decision)
            raise
        self._decisions[handle] = decision
        return handle, report


def _is_plain(decision: Decision, spec: ModelSpec) -> bool:
    """Whether the plain engine stays, with the threads that it was given unmeasured."""
    return decision.choice.label == plain_choice(spec).label and not decision.by_threads
