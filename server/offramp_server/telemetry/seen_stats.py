"""Counters of what routes see of their own answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from offramp_adapters.audits.loss import outcome
from offramp_adapters.audits.observation import ExitObservation, Observation, ShadowObservation


@dataclass(slots=True)
class SeenStats:
    """Of one route, since the server started."""

    # Items by the name of the stage that answered them.
    exits: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # Times that an item was sent on from a stage.
    deferrals: int = 0
    # Items that were answered early and were to be audited, by outcome: agreed | disagreed | lost.
    audits: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # Items that a shadow was to answer too, by (arm, shadow, outcome: agreed | disagreed | lost | unjudged).
    shadows: defaultdict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))

    def answered(self, exits: Iterable[str]) -> None:
        """The stage of each item of an answer."""
        for name in exits:
            self.exits[name] += 1

    def observed(self, observations: Sequence[Observation]) -> None:
        for seen in observations:
            if isinstance(seen, ExitObservation):
                self._exit(seen)
            else:
                self.shadows[seen.arm, seen.shadow, _of_shadow(seen)] += 1

    def _exit(self, seen: ExitObservation) -> None:
        self.deferrals += seen.exit
        if seen.audited and seen.exit < seen.stages - 1:
            self.audits[outcome(seen)] += 1


def _of_shadow(seen: ShadowObservation) -> str:
    if seen.lost:
        return "lost"
    return {True: "agreed", False: "disagreed", None: "unjudged"}[seen.agreed]
