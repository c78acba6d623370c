"""The workers of one device: loads models into all of them, keeps a warm standby, replaces the dead."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from offramp_server.cores import usable_cores
from offramp_server.errors import LoadError, Unavailable
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.telemetry.stats import Stats
from offramp_server.workers.executor import ModelExecutor
from offramp_server.workers.host import LoadReport, Placement

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 10.0
# Of one model into a new worker. One failure may be chance: the worker was killed, or memory was short.
MAX_LOAD_ATTEMPTS = 2

log = logging.getLogger("offramp.workers")

DeathHandler = Callable[[ModelExecutor, str], None]
ExecutorFactory = Callable[[str, Scheduler, DeathHandler], ModelExecutor]


@dataclass(frozen=True, slots=True)
class _Loaded:
    spec: ModelSpec
    placement: Placement


class WorkerGroup:
    """Active workers compute; standbys hold the same models and wait for an active one to die."""

    def __init__(
        self, device: str, scheduler: Scheduler, make_executor: ExecutorFactory, standbys: int, stats: Stats
    ) -> None:
        self.device = device
        self.scheduler = scheduler
        self._make_executor = make_executor
        self._standbys_later = standbys
        self._wanted_standbys = 0
        self._wanted_actives = 0
        self._stats = stats
        self._actives: list[ModelExecutor] = []
        self._standbys: list[ModelExecutor] = []
        self._models: dict[int, _Loaded] = {}
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
        return handle in self._models

    async def load(self, handle: int, spec: ModelSpec) -> LoadReport:
        """Load the model wherever it belongs. Raises LoadError, and then no worker holds it."""
        async with self._changes:
            await self._grow(max(1, spec.engine.instances))
            loaded = _Loaded(spec, Placement(self.device, self._threads(spec)))
            report = await self._load_into_all(handle, loaded)
            self._models[handle] = loaded
        self._refill_soon()
        return report

    async def unload(self, handle: int) -> None:
        async with self._changes:
            self._models.pop(handle, None)
            for member in self.executors:
                await self._unload_from(member, handle)

    async def close(self) -> None:
        self._closing = True
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        for member in self.executors:
            self.scheduler.detach(member)
        await asyncio.gather(*(member.close() for member in self.executors))
        self._actives.clear()
        self._standbys.clear()

    # Members

    async def _grow(self, actives: int) -> None:
        self._wanted_actives = max(self._wanted_actives, actives)
        while len(self._actives) < self._wanted_actives:
            self._activate(await self._spawn(Counter()))

    async def _spawn(self, failures: Counter[int]) -> ModelExecutor:
        """A worker that holds every model but those that have failed too often. Raises LoadError, and counts it."""
        self._spawned += 1
        member = self._make_executor(f"{self.device}-{self._spawned}", self.scheduler, self._on_death)
        try:
            await member.start()
            for handle, loaded in list(self._models.items()):
                if failures[handle] < MAX_LOAD_ATTEMPTS:
                    await self._reload_into(member, handle, loaded, failures)
        except BaseException:
            await member.close()
            raise
        return member

    @staticmethod
    async def _reload_into(member: ModelExecutor, handle: int, loaded: _Loaded, failures: Counter[int]) -> None:
        try:
            await member.load(handle, loaded.spec, loaded.placement)
        except Exception as error:
            failures[handle] += 1
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

    def _threads(self, spec: ModelSpec) -> int:
        if spec.engine.threads:
            return spec.engine.threads
        return max(1, usable_cores() // self._wanted_actives)

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
        for handle, loaded in list(self._models.items()):
            # Loading what nobody could load might kill a worker that serves.
            if any(member.holds(handle) for member in self.executors):
                await self._load_where_lacking(handle, loaded)
            if not any(member.holds(handle) for member in self._actives):
                self._give_up(handle)

    async def _load_where_lacking(self, handle: int, loaded: _Loaded) -> None:
        for member in self.actives:
            if not member.holds(handle):
                try:
                    await member.load(handle, loaded.spec, loaded.placement)
                except LoadError as error:
                    log.error("%s cannot take over a model: %s", member.name, error)
        self.scheduler.wake()

    def _give_up(self, handle: int) -> None:
        """No worker could load the model again: those who wait for it are told."""
        loaded = self._models.pop(handle)
        log.error(
            "%s is given up: no worker could load it again; every request fails until it is loaded anew",
            _named(loaded.spec),
        )
        self.scheduler.fail_lane(handle, Unavailable("no worker could load the model again; see the log"))


def _named(spec: ModelSpec) -> str:
    return f'model "{spec.name}" version {spec.version}'
