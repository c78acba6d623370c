"""`route.toml`: a name over models of the same repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from offramp_adapters.routes.single import Single
from offramp_adapters.routes.strategy import ModelRef, Strategy
from offramp_common.toml_schema import between, bind, matches, read_toml

from offramp_server.errors import ConfigurationError
from offramp_server.repository.layout import MODEL_FILES, MODEL_TOML, ROUTE_TOML

_LATER_KINDS = ("ensemble", "early_exit", "split")


@dataclass(frozen=True, slots=True)
class RouteToml:
    """The file as written."""

    kind: Literal["single"]
    # A model of the same repository.
    model: Annotated[str, matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "the name of a model")]
    # Pins one version; left out: the latest that is ready.
    version: Annotated[int, between(1)] | None = None


def read_route_toml(folder: Path) -> Strategy:
    """The strategy of the route in `folder`. Raises ConfigurationError."""
    path = folder / ROUTE_TOML
    table = read_toml(path)
    if table.get("kind") in _LATER_KINDS:
        raise ConfigurationError(f'{path}: kind = "{table["kind"]}" is not available yet; this version serves "single"')
    route = bind(RouteToml, table, path)
    if route.model == folder.name:
        raise ConfigurationError(f'{path}: model: the route "{folder.name}" cannot run itself; name a model')
    for entry in folder.iterdir():
        if entry.name.isdecimal() or entry.name in (MODEL_TOML, *MODEL_FILES):
            raise ConfigurationError(
                f"{folder}: has both {ROUTE_TOML} and {entry.name}; a folder is a route or a model"
            )
    version = "" if route.version is None else str(route.version)
    return Single(ModelRef(route.model, version))
