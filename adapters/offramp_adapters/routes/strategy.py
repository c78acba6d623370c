"""What decides how a route answers: a definition as it is written, and the strategy that it becomes once it is known
what the names in it stand for. Neither does I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Protocol

from open_inference.tensor import Tensor

from offramp_adapters.routes.plan import Answer, Parameters, Plan, Target


class RouteInvalid(ValueError):
    """The route does not fit what it names; the sentence says which, and what would."""


class Level(IntEnum):
    """How loaded the server is, as the load controller sees it."""

    IDLE = 0
    NORMAL = 1
    BUSY = 2
    OVERLOADED = 3


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One input or output. `dims` leave out the batch dimension if the endpoint batches; -1 is a variable dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a route has to know of a model or route that it names, to tell whether they fit."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    # Items of one request; 0: there is no batch dimension.
    max_batch_size: int
    # Names of Answer.scores that its answers carry.
    scores: frozenset[str] = frozenset()
    # Changes with whatever may change its answers: version, engine, precision, a route's own settings.
    fingerprint: str = ""
    # Where it is computed; empty: in no single place. What stays in a worker can only be used on its own device.
    device: str = ""
    # Of a model: its [metadata], which says what a segment is a segment of.
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """One request, as a strategy sees it, and the conditions under which it has come."""

    parameters: Parameters
    inputs: Sequence[Tensor]
    # Uniform in [0, 1), a new one for each call, and independent of everything that was sent.
    coin: Callable[[], float]
    # Decided when the request came, before anything of it was looked at.
    level: Level = Level.NORMAL
    # The route's epoch, and the number of this request in it, in order of arrival.
    epoch: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Face:
    """What clients see of a route: the inputs of one target, the outputs of another."""

    takes: Target
    gives: Target
    # Names of `gives`' outputs that the route's answers have, in order.
    outputs: tuple[str, ...]
    max_batch_size: int
    scores: frozenset[str] = field(default_factory=frozenset)


class Strategy(Protocol):
    """One route, ready to answer. It holds nothing of a request; a plan follows from its query and what runs come to.

    Immutable: a change of a threshold or a weight is another strategy, and requests under way keep theirs.
    """

    kind: ClassVar[str]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Everything that it may run."""
        ...

    @property
    def face(self) -> Face: ...

    def plan(self, query: Query) -> Plan[Answer]:
        """Raises RouteRefused, at the first step or later."""
        ...


class Definition(Protocol):
    """A route as it is written down."""

    kind: ClassVar[str]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Everything that it names."""
        ...

    def bind(self, endpoints: Mapping[Target, Endpoint]) -> Strategy:
        """`endpoints` has every target. Raises RouteInvalid if they do not fit each other."""
        ...
