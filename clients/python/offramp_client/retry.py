"""When a call is tried again, and how long all of its attempts may take together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Far beyond any sensible max_backoff, and far from where a float overflows.
_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter ("Exponential Backoff and Jitter", Marc Brooker, AWS, 2015).

    Only UNAVAILABLE is tried again, and never beyond the call's deadline, which spans all attempts. A server that
    says how long to stay away (`grpc-retry-pushback-ms`) is obeyed instead of the back-off.
    """

    #: Attempts in all, the first included; 1 never retries.
    max_attempts: int = 4
    #: Upper bound of the pause before the second attempt, in seconds.
    initial_backoff: float = 0.05
    #: Upper bound of every pause, in seconds.
    max_backoff: float = 2.0
    #: What the upper bound is multiplied with from one pause to the next.
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts counts the first attempt as well: at least 1, got {self.max_attempts}")
        if not 0 <= self.initial_backoff <= self.max_backoff < math.inf:
            raise ValueError(
                "expected 0 <= initial_backoff <= max_backoff seconds, "
                f"got {self.initial_backoff:g} and {self.max_backoff:g}"
            )
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier has to be at least 1, got {self.multiplier:g}")

    def backoff(self, attempt: int, chance: float) -> float:
        """Seconds to wait after attempt number `attempt` (from 1), for a uniform random `chance` in [0, 1)."""
        ceiling = self.initial_backoff * self.multiplier ** min(attempt - 1, _MAX_DOUBLINGS)
        return chance * min(self.max_backoff, ceiling)


class Deadline:
    """A point in time on `clock` (seconds), or none."""

    def __init__(self, clock: Callable[[], float], seconds: float | None) -> None:
        """In so many seconds; None: never. Raises ValueError if that is not in the future."""
        check_timeout(seconds)
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds

    def remaining(self, limit: float | None = None) -> float | None:
        """Seconds until then or until `limit` has passed, never negative; None: no limit."""
        left = min(max(0.0, self._end - self._clock()), math.inf if limit is None else limit)
        return left if math.isfinite(left) else None

    def allows(self, pause: float) -> bool:
        """Whether anything is left after a pause of that many seconds."""
        return math.isfinite(pause) and self._clock() + pause < self._end


def check_timeout(seconds: float | None) -> None:
    """Raise ValueError for what is no duration."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"a timeout is a positive number of seconds, or None for no limit; got {seconds!r}")
