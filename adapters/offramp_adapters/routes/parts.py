"""What a route calls the models and routes that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Definition


@dataclass(frozen=True, slots=True)
class Part:
    """One target and what it is for."""

    target: Target
    # member | stage | arm | shadow; empty for the only one of a single route.
    role: str = ""
    # As in the names of settings, in `offramp_exit` and in `offramp_arm`.
    label: str = ""


@runtime_checkable
class Composed(Protocol):
    """A definition that names its parts."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order of the file."""
        ...


def parts_of(definition: Definition) -> tuple[Part, ...]:
    if isinstance(definition, Composed):
        return definition.parts
    return tuple(Part(target) for target in definition.targets)
