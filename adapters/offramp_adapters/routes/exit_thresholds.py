"""What is asked of each exit of an early-exit route at each level of load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp_adapters.control.rules import LoadRule
from offramp_adapters.routes.strategy import Level

# No score is higher, so that an exit with a threshold above is closed.
HIGHEST = 1.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """What one exit asks: an item leaves whose score is at least that."""

    value: float
    # Of classes that have their own, by their number.
    by_class: Mapping[int, float]

    def at(self, level: float | None) -> Threshold:
        """At a level with a threshold of its own. Those of classes move by as much as the exit's.

        An exit that is closed stays so: who closes one (an operator, a certificate that was lost) means it.
        """
        if level is None or self.value > HIGHEST:
            return self._closed_for_all()
        moved = {number: max(0.0, value + level - self.value) for number, value in self.by_class.items()}
        return Threshold(level, moved)._closed_for_all()

    def _closed_for_all(self) -> Threshold:
        """A class with a threshold of its own is no way out of an exit that is closed."""
        return Threshold(self.value, {}) if self.value > HIGHEST else self


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for requests that come at one level of load."""

    # One for each exit.
    thresholds: tuple[Threshold, ...]
    # Chance of an audit, of items that exit.
    audits: float
    # Chance of being refused.
    shed: float


def rules_of(thresholds: Sequence[Threshold], audit_rate: float, load: Mapping[Level, LoadRule]) -> tuple[Rules, ...]:
    """In the order of the levels."""
    return tuple(_rules(thresholds, audit_rate, load.get(level, LoadRule())) for level in Level)


def _rules(thresholds: Sequence[Threshold], audit_rate: float, rule: LoadRule) -> Rules:
    levels = rule.thresholds or (None,) * len(thresholds)
    moved = tuple(threshold.at(level) for threshold, level in zip(thresholds, levels, strict=True))
    return Rules(moved, min(1.0, audit_rate * rule.audits), rule.shed)
