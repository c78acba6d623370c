"""The workers of one device: loads models into all of them, keeps a warm standby, replaces the dead."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError, Unavailable
from offramp_server.machine.plan import CoresPlan, Topology
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.telemetry.stats import Stats
from offramp_server.workers.executor import ModelExecutor
from offramp_server.workers.host import LoadReport, Placement
from offramp_server.workers.placing import Placing

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 10.0
# Of one model into a new worker. One failure may be chance: the worker was killed, or memory was short.
MAX_LOAD_ATTEMPTS = 2
# Between attempts to load what such a worker was started without.
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0

log = logging.getLogger("offramp.workers")

DeathHandler = Callable[[ModelExecutor, str], None]
# With the processors that the worker is to stay on; none: all that there are.
ExecutorFactory = Callable[[str, Scheduler, DeathHandler, Sequence[int]], ModelExecutor]


@dataclass(slots=True)
class _Loaded:
    spec: ModelSpec
    # Workers and threads that it would have by itself.
    wanted: CoresPlan
    placement: Placement
    # Of the last load into a worker that went well.
    report: LoadReport | None = None
    # Of the last attempt to load it again.
    error: str = ""


class WorkerGroup:
    """Active workers compute; standbys hold the same models and wait for an active one to die."""

    def __init__(
        self,
        device: str,
        scheduler: Scheduler,
        make_executor: ExecutorFactory,
        standbys: int,
        stats: Stats,
        topology: Topology,
    ) -> None:
        # Called whenever there is a model that no worker could load again, or that one has loaded at last.
        self.on_change: Callable[[], None] = lambda: None
        self.device = device
        self.scheduler = scheduler
        self._make_executor = make_executor
        self._placing = Placing(device, topology)
        self._standbys_later = standbys
        self._wanted_standbys = 0
        self._wanted_actives = 0
        self._stats = stats
        self._actives: list[ModelExecutor] = []
        self._standbys: list[ModelExecutor] = []
        self._models: dict[int, _Loaded] = {}
        # Those that the workers were replaced without.
        self._lost: set[int] = set()
        # Load what some worker lacks.
        self._retries: dict[int, asyncio.Task[None]] = {}
        self._spawned = 0
        self._closing = False
        # Loads, unloads and replacements change the same members and must not interleave.
        self._changes = asyncio.Lock()
        self._refill: asyncio.Task[None] | None = None

    @property
    def actives(self) -> list[ModelExecutor]:
        return list(self._actives)

    @property
    def standbys(self) -> list[ModelExecutor]:
        return list(self._standbys)

    @property
    def executors(self) -> list[ModelExecutor]:
        return [*self._actives, *self._standbys]

    @property
    def unused(self) -> bool:
        """Whether no model is loaded here, nor being loaded."""
        return not self._models and not self._changes.locked()

    def keep_standbys(self) -> None:
        """From now on. Before the server is ready they would only make it ready later."""
        self._wanted_standbys = self._standbys_later
        self._refill_soon()

    def serves(self, handle: int) -> bool:
        """Whether some worker holds the model, or will once the dead are replaced."""
        return handle in self._models and handle not in self._lost

    def problem(self, handle: int) -> str:
        """Why it is not served; empty if it is."""
        if handle not in self._lost:
            return ""
        return f"no worker could load it again, which goes on being tried: {self._models[handle].error}"

    def report(self, handle: int) -> LoadReport | None:
        """Of the model as it is loaded now; None: it is not."""
        return self._models[handle].report if handle in self._models else None

    def threads_by_itself(self, spec: ModelSpec) -> int:
        """Intra-op threads of a worker that has this model alone."""
        return self._placing.threads_by_itself(spec.engine)

    async def explain(self, handle: int, choice: EngineChoice) -> LoadReport:
        """The model stays in the engine that it has; what is said of it, now and by workers to come, is what the choice
        says."""
        # Another model's load may be giving this one fewer threads, and would put back what was said before.
        async with self._changes:
            loaded = self._models[handle]
            assert loaded.report is not None
            loaded.placement = replace(loaded.placement, choice=choice)
            engine = loaded.report.engine
            engine = replace(engine, reason=choice.reason, measured=choice.measured, rejected=choice.rejected)
            loaded.report = replace(loaded.report, engine=engine)
            return loaded.report

    async def load(
        self,
        handle: int,
        spec: ModelSpec,
        choice: EngineChoice | None = None,
        seconds_by_threads: Mapping[int, float] | None = None,
    ) -> LoadReport:
        """Load the model wherever it belongs. Raises LoadError, and then no worker holds it. `choice`: what to run it
        with, in every worker alike. `seconds_by_threads`: for one batch, if that was measured."""
        async with self._changes:
            wanted = self._placing.wanted(spec.engine, seconds_by_threads)
            await self._grow(wanted.instances)
            self._placing.warn_of_too_many(spec, self._wanted_actives)
            loaded = _Loaded(spec, wanted, Placement(self.device, self._threads(spec, wanted), choice))
            loaded.report = report = await self._load_into_all(handle, loaded)
            self._models[handle] = loaded
        self._refill_soon()
        return report

    async def unload(self, handle: int) -> None:
        async with self._changes:
            self._models.pop(handle, None)
            self._lost.discard(handle)
            # Not before the lock is held: a worker may be loading it for this task.
            retry = self._retries.pop(handle, None)
            if retry is not None:
                retry.cancel()
            for member in self.executors:
                await self._unload_from(member, handle)

    async def close(self) -> None:
        self._closing = True
        tasks = [*self._retries.values(), *([] if self._refill is None else [self._refill])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self.executors:
            self.scheduler.detach(member)
        await asyncio.gather(*(member.close() for member in self.executors))
        self._actives.clear()
        self._standbys.clear()

    # Members

    async def _grow(self, actives: int) -> None:
        if actives > self._wanted_actives:
            self._wanted_actives = actives
            # Before there are more workers: together they must not have more threads than there are cores.
            await self._share_out_again()
        while len(self._actives) < self._wanted_actives:
            self._activate(await self._spawn(Counter()))

    async def _share_out_again(self) -> None:
        """Give each model its threads among as many workers as there are to be. It is served meanwhile."""
        for handle, loaded in self._models.items():
            threads = self._threads(loaded.spec, loaded.wanted)
            if threads != loaded.placement.threads:
                await self._load_again(handle, loaded, replace(loaded.placement, threads=threads))

    async def _load_again(self, handle: int, loaded: _Loaded, placement: Placement) -> None:
        for member in [*self._standbys, *self._actives]:
            if member.holds(handle):
                try:
                    loaded.report = await member.load(handle, loaded.spec, placement)
                except LoadError as error:
                    # What it had it still has, or it died and its replacement will be told.
                    log.warning("%s keeps its threads in %s: %s", _named(loaded.spec), member.name, error)
                    return
                loaded.placement = placement

    async def _spawn(self, failures: Counter[int]) -> ModelExecutor:
        """A worker that holds every model but the lost and those that have failed too often. Raises LoadError, and
        counts it."""
        async with self._new_worker() as member:
            for handle, loaded in list(self._models.items()):
                if failures[handle] < MAX_LOAD_ATTEMPTS and handle not in self._lost:
                    failures[handle] += 1
                    await self._reload_into(member, handle, loaded)
                    failures[handle] -= 1
        return member

    @asynccontextmanager
    async def _new_worker(self) -> AsyncIterator[ModelExecutor]:
        """A worker that has started, and is closed if what is done with it fails."""
        self._spawned += 1
        name = f"{self.device}-{self._spawned}"
        cpus = self._placing.cpus(name, [member.name for member in self.executors])
        member = self._make_executor(name, self.scheduler, self._on_death, cpus)
        try:
            await member.start()
            yield member
        except BaseException:
            await member.close()
            raise

    @staticmethod
    async def _reload_into(member: ModelExecutor, handle: int, loaded: _Loaded) -> None:
        """Raises what the load raises."""
        try:
            await member.load(handle, loaded.spec, loaded.placement)
        except Exception as error:
            # What a defect says is for the log; every caller can read what problem there is.
            loaded.error = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}; see the log"
            log.error("%s could not load %s again: %s", member.name, _named(loaded.spec), error)
            raise

    async def _load_into_all(self, handle: int, loaded: _Loaded) -> LoadReport:
        report: LoadReport | None = None
        # A standby goes first: a model that kills its worker while it loads must not kill one that serves.
        for member in [*self._standbys, *self._actives]:
            try:
                report = await member.load(handle, loaded.spec, loaded.placement)
            except LoadError:
                if report is not None and not member.alive:
                    # Another worker has shown that the model loads: this one died of something else, and the one
                    # that replaces it will load the model.
                    continue
                await self._unload_everywhere(handle)
                raise
        assert report is not None
        return report

    async def _unload_everywhere(self, handle: int) -> None:
        for holder in self.executors:
            if holder.holds(handle):
                await self._unload_from(holder, handle)

    @staticmethod
    async def _unload_from(member: ModelExecutor, handle: int) -> None:
        try:
            await member.unload(handle)
        except LoadError as error:
            # It died meanwhile, and the model with it.
            log.info("unloading from %s: %s", member.name, error)

    def _activate(self, member: ModelExecutor) -> None:
        self._actives.append(member)
        self.scheduler.attach(member)

    def _threads(self, spec: ModelSpec, wanted: CoresPlan) -> int:
        return self._placing.threads(spec.engine, wanted, self._wanted_actives)

    # Death and replacement

    def _on_death(self, member: ModelExecutor, reason: str) -> None:
        if self._closing:
            return
        log.warning("worker %s died (%s)", member.name, reason)
        self._stats.worker_restarts[(self.device, reason)] += 1
        if member in self._standbys:
            self._standbys.remove(member)
        if member in self._actives:
            self._actives.remove(member)
            if self._standbys:
                self._activate(self._standbys.pop(0))
        self._refill_soon()

    def _refill_soon(self) -> None:
        if self._refill is None or self._refill.done():
            self._refill = asyncio.create_task(self._replace_missing(), name=f"replace workers of {self.device}")

    def _missing(self) -> bool:
        return len(self._actives) < self._wanted_actives or len(self._standbys) < self._wanted_standbys

    async def _replace_missing(self) -> None:
        while True:
            await self._spawn_missing()
            async with self._changes:
                await self._serve_what_standbys_lacked()
            # Others may have died meanwhile, and found this task still running.
            if not self._missing():
                return

    async def _spawn_missing(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        failures: Counter[int] = Counter()
        while self._missing():
            try:
                async with self._changes:
                    # A load that had the lock until now may have started it.
                    if self._missing():
                        self._admit(await self._spawn(failures))
                backoff = FIRST_BACKOFF_SECONDS
            except Exception as error:
                # Whatever it is, the next worker may be luckier; nobody else would start one.
                unforeseen = not isinstance(error, LoadError)
                log.error("a worker for %s could not be replaced: %s", self.device, error, exc_info=unforeseen)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    def _admit(self, member: ModelExecutor) -> None:
        if len(self._actives) < self._wanted_actives:
            self._activate(member)
        else:
            self._standbys.append(member)

    async def _serve_what_standbys_lacked(self) -> None:
        """A standby that has taken over may lack models that could not be loaded into it when it was started."""
        for handle in list(self._models):
            # Loading what nobody could load might kill a worker that serves.
            if self._held(handle):
                await self._load_where_lacking(handle, self.actives)
            if handle not in self._retries and not self._held_by_all(handle):
                self._retries[handle] = asyncio.create_task(self._bring_back(handle), name=f"load {handle} again")
        self._tell_what_is_lost()

    async def _load_where_lacking(self, handle: int, members: Sequence[ModelExecutor]) -> None:
        for member in members:
            if not member.holds(handle):
                with suppress(LoadError):
                    await self._reload_into(member, handle, self._models[handle])
        self.scheduler.wake()

    # What was replaced without a model

    async def _bring_back(self, handle: int) -> None:
        """Load the model into every worker that lacks it, again and again until none does."""
        pause = FIRST_RETRY_SECONDS
        while handle in self._retries:
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)
            async with self._changes:
                try:
                    await self._load_safely(handle)
                except Exception as error:
                    # Nobody else would try again, whatever it is.
                    unforeseen = not isinstance(error, LoadError)
                    log.error("the next attempt is in %g s: %s", pause, error, exc_info=unforeseen)
                self._tell_what_is_lost()
                if self._held_by_all(handle) and self._actives:
                    del self._retries[handle]

    async def _load_safely(self, handle: int) -> None:
        """Where it is lacking, but not into a worker that serves before another has shown that it can be loaded.
        Raises what the load raises."""
        if not self._held(handle):
            if self._standbys:
                await self._reload_into(self._standbys[0], handle, self._models[handle])
            else:
                await self._try_out(handle)
        await self._load_where_lacking(handle, [*self._standbys, *self._actives])

    async def _try_out(self, handle: int) -> None:
        async with self._new_worker() as member:
            await self._reload_into(member, handle, self._models[handle])
            await member.close()

    def _held(self, handle: int) -> bool:
        return any(member.holds(handle) for member in self.executors)

    def _held_by_all(self, handle: int) -> bool:
        return all(member.holds(handle) for member in self.executors)

    def _tell_what_is_lost(self) -> None:
        """To those who wait for it, and to whoever shows what is ready."""
        if not self._actives:
            # They are being replaced, and may come back with everything.
            return
        lost = {handle for handle in self._models if not any(member.holds(handle) for member in self._actives)}
        before, self._lost = self._lost, lost
        for handle in lost - before:
            log.error("%s: %s", _named(self._models[handle].spec), self.problem(handle))
            self.scheduler.fail_lane(handle, Unavailable(self.problem(handle)))
        for handle in before - lost:
            log.info("%s is served again", _named(self._models[handle].spec))
        if lost != before:
            self.on_change()


def _named(spec: ModelSpec) -> str:
    return f'model "{spec.name}" version {spec.version}'
