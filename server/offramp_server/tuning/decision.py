"""What a tuning came to: plain data, kept between starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from offramp_server.engine_choice import EngineChoice


@dataclass(frozen=True, slots=True)
class Measurement:
    """How one candidate did."""

    # Seconds for a batch of one item, and for the largest batch.
    first: float
    full: float
    # From the plain engine's answers, relative to its largest; 0 for the plain engine itself.
    difference: float = 0.0

    @property
    def score(self) -> float:
        """Seconds: the geometric mean, so that half the time for one item weighs as much as half of it for many."""
        return math.sqrt(self.first * self.full)


@dataclass(frozen=True, slots=True)
class Decision:
    """An engine for one model on one device, and everything that was found out on the way."""

    choice: EngineChoice
    # By the label of each candidate that was timed.
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    # Of what was chosen, by intra-op threads.
    by_threads: Mapping[int, Measurement] = field(default_factory=dict)
    # False: something was left out for want of time, memory, disk space or a compiler; another tuning might find more.
    complete: bool = True
    # Whether the disk was too full for some of it.
    disk_full: bool = field(default=False, compare=False)
    # Whether it is of an earlier tuning.
    remembered: bool = field(default=False, compare=False)
