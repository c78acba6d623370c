"""A route over one model or route: a name that stays while what is behind it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp_adapters.routes.parameters import check_route
from offramp_adapters.routes.plan import Answer, Plan, Run, Target, alone
from offramp_adapters.routes.strategy import Endpoint, Face, Query


@dataclass(frozen=True, slots=True)
class SingleRoute:
    """`kind = "single"`."""

    target: Target
    kind: ClassVar[str] = "single"

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.target,)

    def bind(self, endpoints: Mapping[Target, Endpoint]) -> Single:
        target = endpoints[self.target]
        names = tuple(output.name for output in target.outputs)
        return Single(self.target, Face(self.target, self.target, names, target.max_batch_size, target.scores))


@dataclass(frozen=True, slots=True)
class Single:
    """Every request runs the one target."""

    target: Target
    face: Face
    kind: ClassVar[str] = "single"

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.target,)

    def plan(self, query: Query) -> Plan[Answer]:
        check_route(query.parameters, self.kind, self.targets)
        # The only target is its own reference: it never disagrees with it, so any bound is kept.
        return (yield from alone(Run(self.target)))
