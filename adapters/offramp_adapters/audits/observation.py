"""What a route has seen of its own answers: plain data, which others count, store and judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class ExitObservation:
    """One item of one request at an early-exit route.

    A deferred item gives its pair for free: the reference ran, with probability 1. One that exited was audited with
    `probability`, by a coin that knew nothing of it. Requests that chose their path by parameters are none: they are
    not drawn from the traffic that the route's thresholds are judged by.
    """

    epoch: int
    # The request's number within the epoch, by arrival, and the item's place in it.
    sequence: int
    item: int
    # The stage that answered, from 0; `stages - 1` is the reference.
    exit: int
    stages: int
    # Of each exit that was visited, in order: how sure it was, and what was asked of it, at the time of the decision.
    scores: tuple[float, ...]
    thresholds: tuple[float, ...]
    # That the reference would run, as decided before the item was looked at.
    probability: float
    # Of an item that exits, when this one came. Where it is 0 nothing is known of those that exit, and so the deferred
    # ones that came among them are no sample of anything.
    rate: float
    # Whether it was to run: deferred, or the coin said so. If it could not after all, `lost` says why, and whoever
    # bounds the disagreement has to count this as one.
    audited: bool
    lost: str = ""
    # Of each visited exit: whether its answer agrees with the reference's, as the route defines that; or empty.
    agreed: tuple[bool, ...] = ()
    # Classes of the answer that was served and of the reference; None where there are no classes.
    served: int | None = None
    reference: int | None = None


@dataclass(frozen=True, slots=True)
class ShadowObservation:
    """One item that a shadow arm has answered too, or was to."""

    epoch: int
    sequence: int
    item: int
    arm: str
    shadow: str
    lost: str = ""
    agreed: bool | None = None
    served: int | None = None
    shadowed: int | None = None


Observation: TypeAlias = ExitObservation | ShadowObservation
