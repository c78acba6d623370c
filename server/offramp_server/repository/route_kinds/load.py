"""`[load]` of a route: what it does otherwise at the levels of load that are not the normal one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from offramp_adapters.control.rules import LoadRule
from offramp_adapters.routes.strategy import Level
from offramp_common.toml_schema import between, every

_Share: TypeAlias = Annotated[float, between(0, 1)]


@dataclass(frozen=True, slots=True)
class ExitRuleToml:
    """`[load.LEVEL]` of an early-exit route."""

    # One for each exit, in order, in place of its own.
    thresholds: Annotated[tuple[float, ...], every(between(0))] | None = None
    # Factor on the rate of audits.
    audits: _Share = 1.0
    # Share of the requests that are refused.
    shed: _Share = 0.0

    def rule(self) -> LoadRule:
        return LoadRule(thresholds=self.thresholds, audits=self.audits, shed=self.shed)


@dataclass(frozen=True, slots=True)
class SplitRuleToml:
    """`[load.LEVEL]` of a split."""

    # Whether shadows get their copies.
    shadows: bool = True
    # Share of the requests that are refused.
    shed: _Share = 0.0

    def rule(self) -> LoadRule:
        return LoadRule(shadows=self.shadows, shed=self.shed)


@dataclass(frozen=True, slots=True)
class ExitLoadToml:
    """`[load]` of an early-exit route."""

    idle: ExitRuleToml | None = None
    busy: ExitRuleToml | None = None
    overloaded: ExitRuleToml | None = None


@dataclass(frozen=True, slots=True)
class SplitLoadToml:
    """`[load]` of a split."""

    idle: SplitRuleToml | None = None
    busy: SplitRuleToml | None = None
    overloaded: SplitRuleToml | None = None


def load_rules(load: ExitLoadToml | SplitLoadToml) -> Mapping[Level, LoadRule]:
    levels = {Level.IDLE: load.idle, Level.BUSY: load.busy, Level.OVERLOADED: load.overloaded}
    return {level: written.rule() for level, written in levels.items() if written is not None}
