"""What a strategy may ask for, and what it is told: the steps between a request and its answer. No I/O.

A plan is a generator. It yields the runs that it needs and is sent what they came to, so that a route reads like the
straight line that it is, and a test can play the models:

    plan = strategy.plan(query)
    step = next(plan)
    step = plan.send((Answer([logits]),))
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from offramp_common.errors import OfframpError
from open_inference.tensor import Array, Tensor

from offramp_adapters.audits.observation import Observation

ParameterValue: TypeAlias = bool | int | float | str
Parameters: TypeAlias = Mapping[str, ParameterValue]


class RouteRefused(ValueError):
    """The request asks something of the route that it cannot do; the sentence says what it can."""


class StateLost(OfframpError):
    """What a stage had left in its worker is gone. Thrown into a plan, which may begin again; clients never see it.

    It had better keep nothing then: whatever ended the worker may do so again, and the server can only tell which
    request it is if it may compute each of them again by itself.
    """

    reason = "unavailable"


class Shed(OfframpError):
    """The route does not take this request at the present load. Decided before anything of it was looked at."""

    reason = "resource_exhausted"


@dataclass(frozen=True, slots=True)
class Target:
    """A model or a route of the same repository. An empty version is the latest that is ready."""

    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class Run:
    """Compute this target, with the deadline and the priority of the request."""

    target: Target
    # None: the request's own.
    inputs: Sequence[Tensor] | None = None
    # What inputs that are not the request's own are, for the error if they are refused.
    inputs_are: str = ""
    # Stages that this request has behind it: the scheduler lets deep ones gather (WORKERS: shallow first).
    depth: int = 0
    # The arm of an experiment under which it is counted; empty: it is no part of one.
    arm: str = ""
    # Some of it may go on to a deeper stage: the scheduler does not send its worker something else ahead of that.
    may_continue: bool = False
    # Names of outputs that a deeper stage on the same device will need and nobody else: they stay in the worker, and
    # the answer has `Held` in their place. Ordinary tensors still, if there is no room. Of a model, not of a route.
    keep: frozenset[str] = frozenset()
    # Parameters of the request that were said to this route, and that a route below must not take for its own.
    heeded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Together:
    """One step: runs that go side by side."""

    runs: tuple[Run, ...]
    # Answers that will do once the deadline is near or others have failed; None: all of them.
    quorum: int | None = None
    # How long before the deadline "near" is, in seconds.
    margin: float = 0.0


@dataclass(slots=True)
class Answer:
    """What a run or a whole plan came to."""

    # Not frozen, as there is one for each request to each model, and making a frozen one takes three times as long.

    outputs: Sequence[Tensor]
    # What the positions along the last dimension of an output mean, where the request decided that.
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # How it came about, for the caller.
    parameters: Parameters = field(default_factory=dict)
    # What took part, in order, as "name:version". A strategy names what its answer is made of.
    models: tuple[str, ...] = ()
    # Facts about each item for a route above this one, by name, [items] each: "agreement" of an ensemble.
    scores: Mapping[str, Array] = field(default_factory=dict)
    # What was seen on the way, and what is to be done once the answer is out.
    observations: tuple[Observation, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class FollowUp:
    """Work that goes on once the answer is out: at low priority, and dropped first."""

    # audit | shadow
    kind: str
    plan: Plan[tuple[Observation, ...]]
    # What is to be noted if it is dropped for this reason, or fails.
    lost: Callable[[str], tuple[Observation, ...]]
    # Not empty: it was dropped already, for this reason, and is only to be counted.
    dropped: str = ""


T = TypeVar("T")

# For each run of a step, in order: what it came to, or None if the step did not wait for it or it failed.
Outcomes: TypeAlias = tuple[Answer | None, ...]
Plan: TypeAlias = Generator[Together, Outcomes, T]


def alone(run: Run) -> Plan[Answer]:
    """A step of one run: `answer = yield from alone(Run(target))`."""
    [answer] = yield Together((run,))
    # Without a quorum every run has answered, or its error was thrown.
    assert answer is not None
    return answer
