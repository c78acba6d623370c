"""The model repository's folder, and what of it is served: each sub-folder is a model or a route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from offramp_server.errors import InternalError, OfframpError
from offramp_server.repository import reader
from offramp_server.repository.registry import ModelRegistry
from offramp_server.routing.live import LiveRoutes
from offramp_server.routing.nesting import MAX_DEPTH

log = logging.getLogger("offramp.repository")


class Catalog:
    """Loads, reloads and unloads by folder name."""

    def __init__(self, repository: Path, models: ModelRegistry, routes: LiveRoutes) -> None:
        self._repository = repository
        self._models = models
        self._routes = routes

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this after every change of what can answer."""
        self._routes.on_change = call

    async def load_all(self) -> None:
        """Load every model, then every route, those that others run first. What cannot be loaded is logged and shows in
        the index; the rest is served."""
        names = await asyncio.to_thread(reader.folder_names, self._repository)
        routes = {name: reader.is_route(self._repository / name) for name in names}
        for name in names:
            if not routes[name]:
                await self._load_or_report(name)
        for name in self._callees_first([name for name in names if routes[name]]):
            await self._load_or_report(name)

    def _callees_first(self, names: list[str]) -> list[str]:
        """Routes in an order in which each finds those that it runs."""
        below: dict[str, list[str]] = {}
        for name in names:
            with suppress(OfframpError):
                below[name] = [target.name for target in reader.read_route(self._repository, name).targets]
        order: dict[str, None] = {}

        def visit(name: str, above: tuple[str, ...]) -> None:
            for callee in below.get(name, ()):
                # Deeper ones are refused in whichever order they come.
                if callee in below and callee not in above and callee not in order and len(above) <= MAX_DEPTH:
                    visit(callee, (*above, name))
            order.setdefault(name)

        for name in names:
            visit(name, (name,))
        return list(order)

    async def _load_or_report(self, name: str) -> None:
        try:
            await self.load(name)
        except OfframpError as error:
            self._models.report_broken(name, error)
        except Exception as error:
            log.exception('folder "%s" could not be read', name)
            self._models.report_broken(name, InternalError(f"{type(error).__name__}; see the log"))

    async def load(self, name: str) -> None:
        """Load or reload what is in the folder now; what it was before, if that was another thing, goes.

        Raises NotFound, ConfigurationError or LoadError.
        """
        if reader.is_route(self._repository / name):
            file = await asyncio.to_thread(reader.find_route, self._repository, name)
            await self._routes.load(name, file)
            route = file.definition
            log.info('route "%s" is ready: %s of %s', name, route.kind, ", ".join(map(str, route.targets)))
            if self._models.versions(name):
                await self._models.unload(name)
        else:
            await self._models.load(name)
            self._routes.remove(name)

    async def unload(self, name: str) -> None:
        """Raises NotFound."""
        if name in self._routes:
            self._routes.remove(name)
        else:
            await self._models.unload(name)
