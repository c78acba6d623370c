"""Ordered stages, each of which may answer: an item leaves at the first one that is sure enough of it.

A stage is a whole model or route, which takes what the client has sent (a cascade: Viola and Jones, 2001), or a segment
of a network with exits, which goes on from what the stage before has handed on (BranchyNet: Teerapittayanon et al.,
2016). The last stage always answers; it is the reference, and how often an early answer differs from what it says is
what the route's thresholds are judged by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp_adapters.routes import exit_binding
from offramp_adapters.routes.exit_passage import Passage
from offramp_adapters.routes.exit_settings import ExitSettings
from offramp_adapters.routes.exit_stages import BoundExits
from offramp_adapters.routes.exit_wishes import read_wish
from offramp_adapters.routes.plan import Answer, Plan, Shed, Target
from offramp_adapters.routes.strategy import Endpoint, Face, Query


@dataclass(frozen=True, slots=True)
class EarlyExitRoute(ExitSettings):
    """`kind = "early_exit"`."""

    kind: ClassVar[str] = "early_exit"

    def bind(self, endpoints: Mapping[Target, Endpoint]) -> EarlyExit:
        return EarlyExit(self.targets, *exit_binding.bind(self, endpoints))


@dataclass(frozen=True, slots=True, eq=False)
class EarlyExit:
    """A passage of every request through the stages."""

    targets: tuple[Target, ...]
    face: Face
    exits: BoundExits
    kind: ClassVar[str] = "early_exit"

    def plan(self, query: Query) -> Plan[Answer]:
        rules = self.exits.rules[query.level]
        # Before anything of the request is looked at, or what is answered would not be a sample of what came.
        if rules.shed and query.coin() < rules.shed:
            raise Shed("this route takes only a part of the requests at the present load; try again later")
        wish = read_wish(query.parameters, self.kind, self.exits.stages)
        return (yield from Passage(self.exits, query, rules, wish).plan())
