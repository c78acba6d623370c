"""Which engine a model is loaded into, and where that is remembered."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any

from offramp_common.engine_names import AUTO

from offramp_server.config import TuningSettings
from offramp_server.engine_choice import EngineChoice
from offramp_server.machine.identity import UnknownDevice
from offramp_server.model_spec import ModelSpec
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.cache import EngineCache
from offramp_server.tuning.choosing import because_trivial, full_batch, is_trivial
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.disk_space import is_disk_full
from offramp_server.tuning.key import DescribeDevice, TuningKey, library_versions, tuning_key
from offramp_server.tuning.threads import undone_if_cancelled
from offramp_server.tuning.trial import Job, TrialFailed
from offramp_server.tuning.tuner import Tuner, candidates, threads_to_try
from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.engines.load import plain_choice, usable_kind

DISK_FULL = (
    "the disk is full, so that not every engine could be built; make room in engines.cache and in the folder for "
    "temporary files"
)
GAPS = "not every engine could be compared, and a faster one may have been left out"

log = logging.getLogger("offramp.engines")


class Engines:
    """Decides for each model. What it decides with a digest of the model's file is remembered."""

    def __init__(
        self,
        settings: TuningSettings,
        cache: EngineCache,
        tuner: Tuner,
        describe_device: DescribeDevice,
        kinds: Sequence[EngineKind],
        stats: Stats,
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._tuner = tuner
        self._describe_device = describe_device
        self._kinds = kinds
        # One decision is made at a time: two tunings would measure each other.
        self._turn = asyncio.Lock()
        self._stats = stats
        # Models of which the log has said that a faster engine may have been left out.
        self._warned: set[str] = set()

    async def first(self, job: Job) -> Decision | None:
        """What is known before anything is measured: what `[engine]` names, or what is remembered; None: nothing yet.

        What is named and has to be built is built. Raises LoadError if that fails.
        """
        if job.spec.engine.backend == AUTO:
            known = await self.remembered(job)
            if known is not None:
                self._warn_of_gaps(job.spec, known)
            return known
        if not self._builds(job.spec):
            return Decision(plain_choice(job.spec))
        usable_kind(job.spec, job.device, job.spec.engine.backend, self._kinds)
        return await self.remembered(job) or await self._once(job, self.build(job))

    async def build(self, job: Job) -> Decision:
        """What `[engine]` names, whatever is remembered. Raises LoadError."""
        key = await self._key(job)
        decision = await self._tuner.build(job, key or _unnamed(job), plain_choice(job.spec))
        await self._remember(key, decision)
        return decision

    async def rebuilt(self, job: Job) -> Decision:
        """As `build`, in its turn."""
        async with self._turn:
            return await self.build(job)

    async def better(self, job: Job, seconds_by_items: Mapping[int, float]) -> Decision:
        """For a model that is loaded into its plain engine and takes so long for a warm batch: what to load it into
        instead, or the same with the reason. Whatever goes wrong is a reason as well."""
        plain = plain_choice(job.spec)
        unchanged = self._not_to_be_tuned(job)
        if unchanged:
            return Decision(replace(plain, reason=unchanged))
        if is_trivial(job.spec, seconds_by_items):
            reason = because_trivial(job.spec, seconds_by_items[full_batch(job.spec)])
            decision = Decision(replace(plain, reason=reason))
            await self._remember(await self._key(job), decision)
            return decision
        decision = await self._once(job, self.tune(job, self._settings.budget))
        self._warn_of_gaps(job.spec, decision)
        return decision

    async def instead_of(
        self, job: Job, refused: Decision, error: Exception, seconds_by_items: Mapping[int, float]
    ) -> Decision:
        """As `better`, for a model whose remembered engine no worker could load, while its plain one is loaded.

        It is forgotten if another can be looked for now: what ended the workers may have been something else.
        """
        if not self._not_to_be_tuned(job):
            await self.forget(job)
            return await self.better(job, seconds_by_items)
        label = refused.choice.label
        return _refused(job, refused, f"{label} is remembered, and no worker could load it", error)

    async def ahead(self, job: Job, budget: float | None, again: bool) -> Decision:
        """What a server would have to find out when it loads the model; what it did not have the time for as well.
        `again`: whatever is remembered. Raises LoadError if what `[engine]` names cannot run here."""
        if job.spec.engine.backend == AUTO:
            unfit = _bears_no_inputs(job.spec)
            if unfit:
                return Decision(replace(plain_choice(job.spec), reason=unfit))
            return (None if again else await self._completed(job)) or await self._tuned_ahead(job, budget)
        usable_kind(job.spec, job.device, job.spec.engine.backend, self._kinds)
        if not self._builds(job.spec):
            return Decision(plain_choice(job.spec))
        return (None if again else await self._completed(job)) or await self.build(job)

    async def _tuned_ahead(self, job: Job, budget: float | None) -> Decision:
        decision = await self.tune(job, budget)
        if decision.disk_full:
            log.warning('model "%s": %s, and run this again', job.spec.name, DISK_FULL)
        return decision

    async def tune(self, job: Job, budget: float | None) -> Decision:
        """Compare everything that `auto` may take, whatever is remembered. `budget` is in seconds."""
        plain, key = plain_choice(job.spec), await self._key(job)
        found = candidates(job.spec, job.device, self._kinds)
        if len(found.choices) == 1 and len(threads_to_try(job)) < 2:
            decision = Decision(replace(plain, reason="auto: the only engine for it here", rejected=found.absent))
            await self._remember(key, decision)
            return decision
        try:
            decision = await self._tuner.tune(job, key or _unnamed(job), budget)
        except TrialFailed as error:
            why = f"nothing could be compared with it, since its own trial {error}"
            decision = replace(_untuned(plain, why), disk_full=error.disk_full)
        except Exception as error:
            # The model is served without.
            log.exception('the engines for model "%s" could not be compared', job.spec.name)
            why = f"engines could not be compared ({type(error).__name__}; see the log)"
            return replace(_untuned(plain, why), disk_full=is_disk_full(error))
        await self._remember(key, decision)
        return decision

    async def could_not_load(self, job: Job, decision: Decision, error: Exception) -> Decision:
        """The workers refuse what was decided: back to the plain engine, which they have loaded."""
        label = decision.choice.label
        log.warning('model "%s": %s was chosen and cannot be loaded: %s', job.spec.name, label, error)
        kept = _refused(job, decision, f"{label} was faster in a trial, and no worker could load it", error)
        await self._remember(await self._key(job), kept)
        return kept

    async def forget(self, job: Job) -> None:
        key = await self._key(job)
        if key is not None:
            await asyncio.to_thread(self._cache.forget, key)

    async def release(self, decision: Decision) -> None:
        """No worker holds it any more, nor will. To be called for each decision that was got here."""
        await asyncio.to_thread(self._let_go, decision)

    def _let_go(self, decision: Decision | None) -> None:
        if decision is not None and decision.choice.artifacts is not None:
            self._cache.release(decision.choice.artifacts)

    def close(self) -> None:
        self._cache.close()

    def _warn_of_gaps(self, spec: ModelSpec, decision: Decision) -> None:
        """Once for each model, however often it is loaded."""
        if decision.complete or spec.name in self._warned:
            return
        self._warned.add(spec.name)
        why = DISK_FULL if decision.disk_full else GAPS
        log.warning(
            'model "%s" runs in %s: %s; run "offramp tune DIR --model %s" for it, while nothing else runs',
            spec.name, decision.choice.label, why, spec.name,
        )  # fmt: skip

    def _builds(self, spec: ModelSpec) -> bool:
        return any(kind.name == spec.engine.backend and kind.builds(spec) for kind in self._kinds)

    def _not_to_be_tuned(self, job: Job) -> str:
        if self._settings.tune == "never" or sys.platform == "win32":
            return plain_choice(job.spec).reason
        return _bears_no_inputs(job.spec)

    # Remembering

    async def _once(self, job: Job, decided: Coroutine[Any, Any, Decision]) -> Decision:
        """What is decided; or what was decided meanwhile for another model with the same key, if there is one."""
        with closing(decided):
            async with self._turn:
                return await self._found(job) or await decided

    async def _found(self, job: Job) -> Decision | None:
        key = await self._key(job)
        if key is None:
            return None
        return await undone_if_cancelled(functools.partial(self._cache.find, key), self._let_go)

    async def remembered(self, job: Job) -> Decision | None:
        found = await self._found(job)
        self._stats.engine_lookups["miss" if found is None else "hit"] += 1
        return found

    async def _completed(self, job: Job) -> Decision | None:
        """What is remembered, unless it left something out."""
        known = await self.remembered(job)
        if known is not None and not known.complete:
            await self.release(known)
            return None
        return known

    async def _remember(self, key: TuningKey | None, decision: Decision) -> None:
        """In a thread: it waits for the disk, and deletes what may be large, while models are served."""
        if key is not None:
            await asyncio.to_thread(self._cache.remember, key, decision)

    async def _key(self, job: Job) -> TuningKey | None:
        """None: nothing can be remembered of it."""
        if not job.spec.digest:
            return None
        try:
            device = await asyncio.to_thread(self._describe_device, job.device)
        except UnknownDevice as error:
            log.warning('the engine of model "%s" will not be remembered: %s', job.spec.name, error)
            return None
        absent = candidates(job.spec, job.device, self._kinds).absent
        return tuning_key(job.spec, device, job.threads, absent, self._versions)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return library_versions()


def _bears_no_inputs(spec: ModelSpec) -> str:
    if spec.warmup.iterations == 0:
        return "auto: the plain engine; [warmup] iterations = 0 says that made-up inputs are not for this model"
    return ""


def _unnamed(job: Job) -> TuningKey:
    """For what is built and not remembered."""
    return TuningKey({"model": job.spec.name, "device": job.device})


def _untuned(plain: EngineChoice, why: str) -> Decision:
    return Decision(replace(plain, reason=f"auto: the plain engine; {why}"), complete=False)


def _refused(job: Job, decision: Decision, why: str, error: Exception) -> Decision:
    """The plain engine, in place of what no worker could load."""
    said = str(error).removeprefix(f'model "{job.spec.name}": ')
    rejected = {**decision.choice.rejected, decision.choice.label: said}
    reason = f"auto: the plain engine; {why}"
    plain = replace(plain_choice(job.spec), reason=reason, measured=decision.choice.measured, rejected=rejected)
    return Decision(plain, decision.measurements, complete=False)
