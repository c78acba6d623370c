"""Which models there are, in which state, and which version answers."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from offramp_common.text import quoted

from offramp_server.endpoints import IndexEntry
from offramp_server.errors import NotFound, OfframpError, Unavailable
from offramp_server.model_spec import ModelSpec
from offramp_server.telemetry.stats import Stats
from offramp_server.workers.backend import LoadedModel

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"

log = logging.getLogger("offramp.repository")

# The versions of one model's folder that should be served. Raises ConfigurationError, LoadError or NotFound.
ModelReader = Callable[[str], Sequence[ModelSpec]]


class ModelLoader(Protocol):
    """What loads a model onto a device (`workers.backend.Backend`)."""

    async def load(self, spec: ModelSpec) -> LoadedModel: ...

    async def unload(self, model: LoadedModel) -> None: ...


class ModelRegistry:
    """The table of models. A load replaces a model's versions at once and lets the old ones finish what they have."""

    def __init__(self, read: ModelReader, loader: ModelLoader, stats: Stats) -> None:
        # Called after every change of what can answer.
        self.on_change: Callable[[], None] = lambda: None
        # Called with every loaded version before it serves; what it raises refuses the load.
        self.before_ready: Callable[[LoadedModel], Awaitable[None]] = _nothing
        # Called with a model's new versions before they replace the old ones; what it raises refuses the load.
        self.before_switch: Callable[[str, Sequence[LoadedModel]], None] = lambda name, loaded: None
        self._read = read
        self._loader = loader
        self._stats = stats
        self._ready: dict[str, dict[int, LoadedModel]] = {}
        self._states: dict[str, dict[str, IndexEntry]] = defaultdict(dict)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retiring: dict[str, set[asyncio.Task[None]]] = defaultdict(set)
        # Loads, unloads and retirements go on when their callers go away, so somebody else has to hold on to them.
        self._under_way: set[asyncio.Task[None]] = set()

    # Looking up

    def get(self, name: str, version: str = "") -> LoadedModel:
        """The version asked for, or the latest that is loaded. Raises NotFound or Unavailable with what there is."""
        versions = self._ready.get(name)
        if not versions:
            raise self._not_ready(name)
        if not version:
            model = versions[max(versions)]
        elif version.isascii() and version.isdigit() and int(version) in versions:
            model = versions[int(version)]
        else:
            known = ", ".join(map(str, sorted(versions)))
            raise NotFound(f'model "{name}" has no version {quoted(version)} that is ready; ready: {known}')
        if model.problem:
            raise Unavailable(f'model "{name}" version {model.spec.version} is not ready: {model.problem}')
        return model

    def versions(self, name: str) -> tuple[str, ...]:
        return tuple(map(str, sorted(self._ready.get(name, ()))))

    def loaded(self) -> Iterable[LoadedModel]:
        return [model for versions in self._ready.values() for model in versions.values()]

    def index(self) -> list[IndexEntry]:
        """Every version that was ever asked to load, by name and version."""
        return [
            self._states[name][version]
            for name in sorted(self._states)
            for version in sorted(self._states[name], key=lambda v: (len(v), v))
        ]

    # Changing

    async def load(self, name: str) -> None:
        """Read the model's folder again, load what it says, switch, retire what was there.

        Raises ConfigurationError, LoadError or NotFound; then whatever was served before goes on being served. Goes
        on to its end if the caller is cancelled.
        """
        await asyncio.shield(self._start(self._load(name), f"load {name}"))

    async def unload(self, name: str) -> None:
        """Stop answering for the model and wait for the requests that it has. Raises NotFound."""
        await asyncio.shield(self._start(self._unload(name), f"unload {name}"))

    async def close(self) -> None:
        """Forget every model without waiting for its requests, and end the loads that are under way."""
        under_way = list(self._under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._ready.clear()

    def report_broken(self, name: str, error: OfframpError) -> None:
        """A folder that cannot be served still shows in the index, with the reason, if its load has left none."""
        if not self._states.get(name):
            self._set_states(name, [""], UNAVAILABLE, str(error))

    def show_problems(self) -> None:
        """Workers have lost models, or have them again."""
        for model in self.loaded():
            self._show(model)
        self.on_change()

    async def _load(self, name: str) -> None:
        async with self._locks[name]:
            try:
                loaded = await self._load_versions(name)
            except NotFound:
                # Of no folder. Remembered, such names would fill the index and the metrics.
                raise
            except OfframpError as error:
                self._stats.loads[name, "error"] += 1
                log.error('model "%s" was not loaded: %s', name, error)
                raise
            self._stats.loads[name, "ok"] += 1
            await self._switch(name, loaded)

    async def _load_versions(self, name: str) -> list[LoadedModel]:
        await self._wait_retired(name)
        loaded: list[LoadedModel] = []
        version = ""
        try:
            for spec in await asyncio.to_thread(self._read, name):
                version = str(spec.version)
                self._announce(name, version)
                loaded.append(await self._loader.load(spec))
                await self.before_ready(loaded[-1])
            self.before_switch(name, loaded)
        except NotFound:
            raise
        except Exception as error:
            self._forget_attempt(name)
            if version not in self.versions(name):
                # What a defect says is for the log; every caller can read the index.
                reason = str(error) if isinstance(error, OfframpError) else f"{type(error).__name__}; see the log"
                self._set_states(name, [version], UNAVAILABLE, reason)
            await asyncio.gather(*map(self._loader.unload, loaded))
            raise
        return loaded

    def _announce(self, name: str, version: str) -> None:
        if version not in self.versions(name):
            self._set_states(name, [version], LOADING)

    def _forget_attempt(self, name: str) -> None:
        """Of versions that do not serve, what earlier loads and the one that has just failed said."""
        served = self.versions(name)
        self._states[name] = {key: entry for key, entry in self._states[name].items() if key in served}

    async def _switch(self, name: str, loaded: Sequence[LoadedModel]) -> None:
        old = self._ready.get(name, {})
        self._ready[name] = {model.spec.version: model for model in loaded}
        self._states[name] = {}
        for model in loaded:
            self._show(model)
        self.on_change()
        for model in loaded:
            engine = model.engine
            log.info(
                'model "%s" version %s is ready: %s on %s, %s, %s',
                name, model.spec.version, engine.label, engine.device, engine.precision, engine.reason,
            )  # fmt: skip
            for label, reason in engine.rejected.items():
                log.info('model "%s" version %s: %s was not taken: %s', name, model.spec.version, label, reason)
        self._retire(name, old.values())

    async def _unload(self, name: str) -> None:
        async with self._locks[name]:
            old = self._ready.pop(name, None)
            if old is None:
                raise self._not_ready(name)
            versions = list(map(str, old))
            self._set_states(name, versions, UNLOADING)
            self._retire(name, old.values())
            await self._wait_retired(name)
            self._set_states(name, versions, UNAVAILABLE, "unloaded")
            log.info('model "%s" was unloaded', name)

    def _retire(self, name: str, models: Iterable[LoadedModel]) -> None:
        for model in models:
            task = self._start(self._loader.unload(model), f"retire {name}")
            self._retiring[name].add(task)
            task.add_done_callback(self._retiring[name].discard)

    async def _wait_retired(self, name: str) -> None:
        """Old versions take memory until their last request is answered; two generations of them are enough."""
        await asyncio.gather(*self._retiring[name], return_exceptions=True)

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    # States

    def _set_states(self, name: str, versions: Iterable[str], state: str, reason: str = "") -> None:
        for version in versions:
            self._states[name][version] = IndexEntry(name, version, state, reason)
        self.on_change()

    def _show(self, model: LoadedModel) -> None:
        name, version = model.spec.name, str(model.spec.version)
        state = UNAVAILABLE if model.problem else READY
        self._states[name][version] = IndexEntry(name, version, state, model.problem)

    def _not_ready(self, name: str) -> OfframpError:
        entries = self._states.get(name)
        if not entries:
            known = ", ".join(sorted(self._ready)) or "none"
            return NotFound(f"there is no model or route {quoted(name)}; ready: {known[:500]}")
        entry = next(iter(entries.values()))
        message = f'model "{name}" is not ready: {entry.state}' + (f" ({entry.reason})" if entry.reason else "")
        return Unavailable(message) if entry.state in (LOADING, UNLOADING) else NotFound(message)


async def _nothing(model: LoadedModel) -> None:
    pass
