"""Settings of routes that change while the routes run: who may undo whom, what outlasts a restart, who is told.

A live setting stands in front of the file, and only of the file that it was made for: once route.toml says something
else, the file counts again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from offramp_adapters.routes.strategy import Level, RouteInvalid
from offramp_common.text import quoted

from offramp_server.endpoints import RouteInfo
from offramp_server.errors import (
    ConfigurationError,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    OfframpError,
    Unavailable,
)
from offramp_server.repository.layout import ROUTE_TOML
from offramp_server.repository.route_toml import RouteFile
from offramp_server.routing.overrides import (
    DROPPED,
    FILE,
    UPDATED,
    Override,
    RouteChange,
    ServedRoute,
    SettingsStore,
    SettingsUpdate,
    difference,
    settings_of,
)
from offramp_server.routing.table import RouteTable

log = logging.getLogger("offramp.routing")


class LiveRoutes:
    """The routes of a table with what was set live. Belongs to one event loop."""

    def __init__(
        self,
        table: RouteTable,
        store: SettingsStore,
        level: Callable[[], Level] = lambda: Level.NORMAL,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now` counts seconds since 1970."""
        # Called after every change of what can answer.
        self.on_change: Callable[[], None] = lambda: None
        self._table = table
        self._store = store
        self._level = level
        self._now = now
        self._served: dict[str, ServedRoute] = {}
        # Nobody may come between the look at an etag and the change.
        self._changing = asyncio.Lock()
        self._watchers: set[asyncio.Event] = set()
        self._draining = False
        table.on_change = self._table_changed

    # What the repository says

    async def load(self, name: str, file: RouteFile) -> None:
        """Serve the route of that file, with what was set live if it was set for this very file.

        Raises ConfigurationError if the route does not fit what it names; then whatever was there before stays.
        """
        async with self._changing:
            saved = await self._store.override(name) or Override()
            served, lost = self._restored(name, file, saved)
            self._table.put(name, served.definition)
            self._served[name] = served
            if lost is not None:
                await self._record_given_up(lost, served.override)
        self.notify()

    async def _record_given_up(self, lost: RouteChange, override: Override) -> None:
        """The route serves by now, and goes on without this in its history; it is given up again at the next load."""
        log.warning('route "%s": what was set live is given up (%s): %s', lost.route, lost.kind, lost)
        try:
            await self._store.record(lost, override)
        except OfframpError as error:
            log.error('route "%s": the history does not say so: %s', lost.route, error)

    def remove(self, name: str) -> None:
        """What was set live is kept for when the route comes back."""
        self._served.pop(name, None)
        self._table.remove(name)

    def __contains__(self, name: str) -> bool:
        return name in self._served

    def _restored(self, name: str, file: RouteFile, saved: Override) -> tuple[ServedRoute, RouteChange | None]:
        """What to serve, and what of that which was set live cannot be any more."""
        if not saved.settings:
            return ServedRoute.of(file, saved), None
        if saved.digest != file.digest:
            return self._given_up(name, FILE, file, saved)
        try:
            served = ServedRoute.of(file, saved)
            self._table.check(name, served.definition)
        except RouteInvalid:
            return self._given_up(name, DROPPED, file, saved)
        except ConfigurationError:
            # Raises the same if it is not for the settings.
            self._table.check(name, file.definition)
            return self._given_up(name, DROPPED, file, saved)
        return served, None

    def _given_up(self, name: str, kind: str, file: RouteFile, saved: Override) -> tuple[ServedRoute, RouteChange]:
        override = Override({}, file.digest, self._now(), ROUTE_TOML)
        written = settings_of(file.definition)
        after = {key: written[key] for key in saved.settings if key in written}
        change = RouteChange(name, kind, self._now(), ROUTE_TOML, saved.settings, after)
        return ServedRoute.of(file, override), change

    # What callers say

    async def update(self, name: str, update: SettingsUpdate, by: str) -> RouteInfo:
        """Change settings for the requests that come from now on, all of them or none.

        Raises NotFound; Conflict for an etag that is not the present one; InvalidRequest for a setting that the route
        does not have or that cannot be; FailedPrecondition if the route is not ready.
        """
        # A caller who goes away must not leave half a change: stored, and not in force.
        return await asyncio.shield(self._update(name, update, by))

    async def _update(self, name: str, update: SettingsUpdate, by: str) -> RouteInfo:
        async with self._changing:
            served = self._find(name)
            _check_etag(name, served, update.etag)
            wanted = served.changed(name, update, self._now(), by)
            if wanted.override.settings == served.override.settings:
                return self.route(name)
            self._check(name, wanted)
            if update.validate_only:
                return self._info(name, wanted)
            change = difference(name, UPDATED, served, wanted)
            # First what outlasts a crash, then what the next request sees.
            await self._store.record(change, wanted.override)
            if name not in self._served:
                raise NotFound(
                    f"route {quoted(name)} was unloaded meanwhile; the change counts once it is loaded again"
                )
            self._served[name] = wanted
            self._table.replace(name, wanted.definition)
            log.info('route "%s": changed by %s: %s', name, by, change)
            return self.route(name)

    def _check(self, name: str, wanted: ServedRoute) -> None:
        """Raises InvalidRequest for settings that do not fit, FailedPrecondition if nothing would."""
        info = self._table.info(name)
        if not info.ready:
            raise FailedPrecondition(
                f'route "{name}" is not ready, so that its settings cannot be checked: {info.reason}; '
                "change them once it is"
            )
        try:
            self._table.check(name, wanted.definition)
        except ConfigurationError as error:
            raise InvalidRequest(str(error)) from error

    def routes(self) -> list[RouteInfo]:
        """In the order of their names."""
        return [self._info(name, self._served[name]) for name in sorted(self._served)]

    def route(self, name: str) -> RouteInfo:
        """Raises NotFound."""
        return self._info(name, self._find(name))

    async def changes(self, name: str, before: int | None, limit: int) -> Sequence[RouteChange]:
        """At most `limit`, the latest first, of those numbered below `before`. Raises NotFound for a name that never
        was a route's."""
        found = await self._store.changes(name, before, limit)
        if not found and before is None:
            self._find(name)
        return found

    async def watch(self) -> AsyncGenerator[list[RouteInfo], None]:
        """All routes now and after each change; states that nobody had time to read are skipped.

        Raises Unavailable once the server drains.
        """
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            state: list[RouteInfo] | None = None
            while not self._draining:
                before, state = state, self.routes()
                if state != before:
                    yield state
                await changed.wait()
                changed.clear()
        finally:
            self._watchers.discard(changed)
        raise Unavailable("the server is draining; watch again in a moment")

    def notify(self) -> None:
        """Something has changed of what `routes` says."""
        for watcher in self._watchers:
            watcher.set()

    def drain(self) -> None:
        """End every watch."""
        self._draining = True
        self.notify()

    def _table_changed(self) -> None:
        self.notify()
        self.on_change()

    def _find(self, name: str) -> ServedRoute:
        served = self._served.get(name)
        if served is None:
            known = ", ".join(sorted(self._served)) or "none"
            raise NotFound(f"there is no route {quoted(name)}; routes: {known}")
        return served

    def _info(self, name: str, served: ServedRoute) -> RouteInfo:
        return replace(
            self._table.info(name),
            etag=served.etag,
            settings=served.settings,
            file_settings=served.file_settings,
            updated_at=served.override.updated_at,
            updated_by=served.override.updated_by,
            level=self._level().name.lower(),
        )


def _check_etag(name: str, served: ServedRoute, etag: str) -> None:
    if etag and etag != served.etag:
        raise Conflict(
            f'route "{name}" has changed: its etag is {quoted(served.etag)}, not {quoted(etag)}; '
            "read it again and decide again"
        )
