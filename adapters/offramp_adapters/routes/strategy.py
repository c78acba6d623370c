"""What decides how a route answers: state in, decision out, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from open_inference.tensor import Tensor

Parameters: TypeAlias = Mapping[str, bool | int | float | str]


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
    """Decision: compute the request's inputs with this model."""

    model: ModelRef


@dataclass(frozen=True, slots=True)
class Answer:
    """Decision: these outputs are the route's answer."""

    outputs: Sequence[Tensor]


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

    def resume(self, run: Run, outputs: Sequence[Tensor]) -> Decision:
        """The next decision, given the outputs of the run that was decided before."""
        ...
