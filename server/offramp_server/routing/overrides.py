"""Settings that stand in front of a route's file: plain data, and what a change makes of it. No I/O."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from offramp_adapters.routes.live import Live
from offramp_adapters.routes.strategy import Definition, RouteInvalid
from offramp_common.text import did_you_mean, quoted

from offramp_server.errors import InvalidRequest
from offramp_server.repository.route_toml import RouteFile

# Kinds of changes.
UPDATED, FILE, DROPPED = "updated", "file", "dropped"


@dataclass(frozen=True, slots=True)
class Override:
    """What is in force in place of a file's settings, since when and by whom."""

    settings: Mapping[str, float] = field(default_factory=dict)
    # Of the file that it was made for.
    digest: str = ""
    # Seconds since 1970; None: nothing was ever changed.
    updated_at: float | None = None
    updated_by: str = ""


@dataclass(frozen=True, slots=True)
class RouteChange:
    """One line of a route's history."""

    route: str
    # updated | file | dropped
    kind: str
    # Seconds since 1970.
    at: float
    by: str
    # The settings that changed. A key may be missing on one side.
    before: Mapping[str, float]
    after: Mapping[str, float]
    # Given by the store, rising.
    number: int = 0

    def __str__(self) -> str:
        keys = sorted({*self.before, *self.after})
        return ", ".join(f"{key} {_shown(self.before.get(key))} -> {_shown(self.after.get(key))}" for key in keys)


class SettingsStore(Protocol):
    """Where overrides outlast the process."""

    async def override(self, route: str) -> Override | None: ...

    async def record(self, change: RouteChange, override: Override) -> None:
        """Both or neither, and durable once it returns."""
        ...

    async def changes(self, route: str, before: int | None, limit: int) -> Sequence[RouteChange]:
        """The latest first; None: of all, else of those numbered below `before`."""
        ...


@dataclass(frozen=True, slots=True)
class SettingsUpdate:
    """What a caller wants of a route's settings."""

    values: Mapping[str, float] = field(default_factory=dict)
    # Those that go back to the file.
    reset: frozenset[str] = frozenset()
    # All others go back as well.
    reset_others: bool = False
    # What the caller has seen; empty: it does not matter.
    etag: str = ""
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class ServedRoute:
    """A route as its file has it, and as it is."""

    file: RouteFile
    override: Override
    definition: Definition
    settings: Mapping[str, float]

    @classmethod
    def of(cls, file: RouteFile, override: Override) -> ServedRoute:
        """Raises RouteInvalid for an override that the route cannot take."""
        definition = file.definition
        if override.settings:
            definition = _live(definition).with_settings(override.settings)
        return cls(file, override, definition, settings_of(definition))

    @property
    def file_settings(self) -> Mapping[str, float]:
        """What the file says where that is not what is."""
        written = settings_of(self.file.definition)
        return {key: value for key, value in written.items() if value != self.settings.get(key)}

    @property
    def etag(self) -> str:
        said = json.dumps([self.file.digest, sorted(self.settings.items())])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def changed(self, name: str, update: SettingsUpdate, at: float, by: str) -> ServedRoute:
        """The route `name` with the update. Raises InvalidRequest."""
        _check(name, self, update)
        kept = {} if update.reset_others else dict(self.override.settings)
        written = settings_of(self.file.definition)
        wanted = {key: value for key, value in kept.items() if key not in update.reset} | dict(update.values)
        override = {key: value for key, value in wanted.items() if value != written[key]}
        try:
            return ServedRoute.of(self.file, Override(override, self.file.digest, at, by))
        except RouteInvalid as error:
            raise InvalidRequest(f'route "{name}": {error}') from error


def settings_of(definition: Definition) -> Mapping[str, float]:
    """Empty for a route that has nothing to set."""
    return definition.settings() if isinstance(definition, Live) else {}


def difference(name: str, kind: str, before: ServedRoute, after: ServedRoute) -> RouteChange:
    """The line in the history. `after` says when and by whom."""
    keys = [key for key, value in after.settings.items() if before.settings.get(key) != value]
    return RouteChange(
        name,
        kind,
        after.override.updated_at or 0.0,
        after.override.updated_by,
        {key: before.settings[key] for key in keys if key in before.settings},
        {key: after.settings[key] for key in keys},
    )


def _check(name: str, route: ServedRoute, update: SettingsUpdate) -> None:
    for key in (*update.values, *update.reset):
        if not route.settings:
            raise InvalidRequest(f'route "{name}" is of the kind {route.definition.kind}, which has nothing to set')
        if key not in route.settings:
            raise InvalidRequest(f'route "{name}" has no setting {quoted(key)}{did_you_mean(key, route.settings)}')
    for key, value in update.values.items():
        if not math.isfinite(value):
            raise InvalidRequest(f'route "{name}": {key}: expected a number, got {value}')


def _live(definition: Definition) -> Live:
    if isinstance(definition, Live):
        return definition
    raise RouteInvalid(f"a route of the kind {definition.kind} has nothing to set")


def _shown(value: float | None) -> str:
    return "(none)" if value is None else f"{value:g}"
