"""How a route's file names a model or another route of the same repository."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from offramp_adapters.routes.plan import Target
from offramp_common.toml_schema import between, matches

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

# A model or a route of the same repository.
TargetName: TypeAlias = Annotated[str, matches(NAME, "the name of a model or a route")]
# What a route calls one of its stages, arms or shadows.
Label: TypeAlias = Annotated[str, matches(NAME, "a name of letters, digits, '.', '_' and '-'")]
# Pins one version of a model; left out: the latest that is ready.
Version: TypeAlias = Annotated[int, between(1)] | None


def target(model: str, version: int | None) -> Target:
    return Target(model, "" if version is None else str(version))
