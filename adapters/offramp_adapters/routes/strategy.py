"""What decides how a route answers: state in, decision out, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

from open_inference.tensor import Tensor

ParameterValue: TypeAlias = bool | int | float | str
Parameters: TypeAlias = Mapping[str, ParameterValue]


class RouteRefused(ValueError):
    """The request asks something of the route that it cannot do; the sentence says what it can."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of the same repository. An empty version is the latest that is ready."""

    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class Run:
    """Decision: compute this model, with the deadline and the priority of the request."""

    model: ModelRef
    # None: the request's own.
    inputs: Sequence[Tensor] | None = None
    # What inputs that are not the request's own are, for the error if they are refused.
    inputs_are: str = ""
    # What the strategy wants to be told again when it is resumed.
    note: object = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run came to. As a decision: this is the route's answer."""

    outputs: Sequence[Tensor]
    # What the positions along the last dimension of an output mean, where the request decided that.
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # How it came about, for the caller.
    parameters: Parameters = field(default_factory=dict)


Decision: TypeAlias = Run | Answer


class Strategy(Protocol):
    """One kind of route, configured. It holds nothing of a request; decisions follow from the arguments alone."""

    kind: ClassVar[str]

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model that it may run. The first one's inputs and outputs are the route's."""
        ...

    def begin(self, parameters: Parameters) -> Decision:
        """The first decision on a request. Raises RouteRefused."""
        ...

    def resume(self, run: Run, answer: Answer) -> Decision:
        """The next decision, given what the run that was decided before came to."""
        ...
