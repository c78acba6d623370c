"""`route.toml`: a name over models and routes of the same repository."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from offramp_adapters.routes.strategy import Definition
from offramp_common.text import did_you_mean, quoted
from offramp_common.toml_schema import bind, read_toml

from offramp_server.errors import ConfigurationError
from offramp_server.repository.layout import MODEL_FILES, MODEL_TOML, ROUTE_TOML
from offramp_server.repository.route_kinds.early_exit import EarlyExitToml
from offramp_server.repository.route_kinds.ensemble import EnsembleToml
from offramp_server.repository.route_kinds.single import SingleToml
from offramp_server.repository.route_kinds.split import SplitToml


class RouteToml(Protocol):
    """A file as written; each kind is a dataclass that `bind` fills."""

    def definition(self) -> Definition:
        """Raises ValueError with a sentence for what spans several keys."""
        ...


KINDS: MappingProxyType[str, type[RouteToml]] = MappingProxyType(
    {"single": SingleToml, "ensemble": EnsembleToml, "early_exit": EarlyExitToml, "split": SplitToml}
)


@dataclass(frozen=True, slots=True)
class RouteFile:
    """A route as its file has it."""

    definition: Definition
    # Of what the file says: comments and spacing do not count.
    digest: str


def read_route_file(folder: Path) -> RouteFile:
    """The route in `folder`. Raises ConfigurationError."""
    path = folder / ROUTE_TOML
    table = read_toml(path)
    schema = KINDS[_kind(table, path)]
    _only_a_route(folder)
    try:
        definition = bind(schema, table, path).definition()
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if folder.name in {target.name for target in definition.targets}:
        raise ConfigurationError(f'{path}: the route "{folder.name}" cannot run itself; name a model or another route')
    said = json.dumps(table, sort_keys=True, default=str)
    return RouteFile(definition, hashlib.sha256(said.encode()).hexdigest())


def _kind(table: dict[str, Any], path: Path) -> str:
    kind = table.get("kind")
    choices = ", ".join(f'"{choice}"' for choice in KINDS)
    if kind is None:
        raise ConfigurationError(f'{path}: "kind" is missing; expected one of {choices}')
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        raise ConfigurationError(f"{path}: kind: expected one of {choices}, got {quoted(str(kind))}{hint}")
    return kind


def _only_a_route(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name.isdecimal() or entry.name in (MODEL_TOML, *MODEL_FILES):
            raise ConfigurationError(
                f"{folder}: has both {ROUTE_TOML} and {entry.name}; a folder is a route or a model"
            )
