"""How loaded the server is, as one of four levels that do not flutter: strategy without I/O, on the caller's clock.

Two things are watched: how long requests wait, as a multiple of how long they may, and which share of the workers'
time goes to requests that somebody waits for. Routes answer more cheaply at a higher level, so the level changes what
it is made from, and three things keep it from swinging:

- hysteresis: a level is left downwards at less than half of the pressure at which it was entered;
- it rises at once and falls slowly, one level at a time, after it was calm for a while: briefly where the workers would
  have room for twice the work, which is evidence that the level below can be borne, and longer where only trying tells;
- a fall that does not last doubles the calm that is asked for before the next one, as routers damp routes that flap
  (RFC 2439), until one has lasted. Under a load that no level fits, changes become rarer instead of a rhythm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from offramp_adapters.routes.strategy import Level

# Time constants of the running means, in seconds: of some batches, and of some hundreds of requests.
_WAITING_SECONDS = 0.2
_BUSY_SECONDS = 1.0
# Waiting, as a multiple of what it may be, at which a level is entered from below, and under which it may be left.
_RISE = {Level.NORMAL: 0.3, Level.BUSY: 0.5, Level.OVERLOADED: 1.0}
_FALL = {Level.NORMAL: 0.1, Level.BUSY: 0.2, Level.OVERLOADED: 0.4}
# Share of the workers' time: an idle server uses it for better answers until it has that much to do. Less than the
# second makes it idle, and is room for twice the work.
_IDLE_ENDS_BUSY, _ROOM_BUSY = 0.8, 0.4
# A level lasts at least that long, in seconds.
_DWELL_SECONDS = 0.1
# How long it has to be calm before a level is left downwards: with room for the work of the level below, and without.
_CALM_SECONDS, _TRY_SECONDS = 1.0, 10.0
# A fall that lasts less than the first was a mistake; one that lasts as long as the second makes up for all of them.
_SHORT_SECONDS, _LONG_SECONDS = 60.0, 300.0
# However many mistakes were made.
_MAX_CALM_SECONDS = 300.0


@dataclass(slots=True)
class _Descent:
    """What is known of leaving one level downwards."""

    # When it last was left.
    fell: float = -math.inf
    # Factor on the calm that is asked for.
    patience: float = 1.0


def _descents() -> dict[Level, _Descent]:
    return {level: _Descent() for level in Level if level > Level.IDLE}


@dataclass(slots=True)
class LoadController:
    """Seconds of any clock that does not go back."""

    level: Level = Level.NORMAL
    # The running means.
    waiting: float = 0.0
    busy: float = 0.0
    _seen: float = -math.inf
    _changed: float = -math.inf
    _calm_since: float | None = None
    _descents: dict[Level, _Descent] = field(default_factory=_descents)

    def observe(self, now: float, waiting: float, busy: float) -> Level:
        """What it is like since the last call, and the level that follows.

        `waiting`: how long requests wait, 1.0 being as long as they may. `busy`: share of the workers' time, 1.0 being
        all of it on average.
        """
        self._smooth(now, waiting, busy)
        if now - self._changed < _DWELL_SECONDS:
            return self.level
        demanded = self._demanded()
        if demanded > self.level:
            self._rise(now, demanded)
        elif self._may_fall(now):
            self._fall(now)
        return self.level

    def _smooth(self, now: float, waiting: float, busy: float) -> None:
        elapsed = now - self._seen
        self._seen = now
        self.waiting += (waiting - self.waiting) * -math.expm1(-elapsed / _WAITING_SECONDS)
        self.busy += (busy - self.busy) * -math.expm1(-elapsed / _BUSY_SECONDS)

    def _demanded(self) -> Level:
        """The highest level that the waiting alone would bring about."""
        demanded = Level.NORMAL if self.busy >= _IDLE_ENDS_BUSY else Level.IDLE
        return max([demanded, *(level for level, bound in _RISE.items() if self.waiting >= bound)])

    def _rise(self, now: float, level: Level) -> None:
        for passed in range(self.level + 1, level + 1):
            descent = self._descents[Level(passed)]
            lasted = now - descent.fell
            if lasted < _SHORT_SECONDS:
                descent.patience *= 2
            elif lasted >= _LONG_SECONDS:
                descent.patience = 1.0
        self._change(now, level)

    def _may_fall(self, now: float) -> bool:
        if self.level is Level.IDLE or self.waiting >= _FALL[self.level]:
            self._calm_since = None
            return False
        if self._calm_since is None:
            self._calm_since = now
        return now - self._calm_since >= self._calm_wanted()

    def _calm_wanted(self) -> float:
        if self.busy < _ROOM_BUSY:
            seconds = _CALM_SECONDS
        elif self.level is Level.NORMAL:
            # Better answers are for capacity that nobody needs; that is not tried.
            return math.inf
        else:
            seconds = _TRY_SECONDS
        return min(_MAX_CALM_SECONDS, seconds * self._descents[self.level].patience)

    def _fall(self, now: float) -> None:
        self._descents[self.level].fell = now
        self._change(now, Level(self.level - 1))

    def _change(self, now: float, level: Level) -> None:
        self.level = level
        self._changed = now
        self._calm_since = None
