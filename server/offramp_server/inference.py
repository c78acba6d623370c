"""Requests and answers between the wire, the routes and the scheduler: plain data."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from offramp_adapters.routes.strategy import Level
from open_inference.tensor import Tensor

ParameterValue: TypeAlias = bool | int | float | str


class FormedInputs(list[Tensor]):
    """Inputs of which more is known. Nobody changes them."""

    __slots__ = ("form",)

    def __init__(self, tensors: Iterable[Tensor], form: Hashable) -> None:
        """Those of one `form` have the same names, datatypes, shapes and sizes of data, and any data of that size will
        do: if some of them fit a model, all do."""
        super().__init__(tensors)
        self.form = form


@dataclass(slots=True)
class InferRequest:
    """One call of a model or a route."""

    model: str
    inputs: Sequence[Tensor]
    # Empty: the version that the server would choose.
    version: str = ""
    id: str = ""
    # Names of the wanted outputs in the wanted order; empty: all.
    outputs: Sequence[str] = ()
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    # Lower is sooner; 0 is the default level, as in Triton.
    priority: int = 0
    # On the event loop's clock (seconds); None: no limit.
    deadline: float | None = None
    # Monotonic nanoseconds; what it waits behind and what waits behind it go by this, at every stage.
    arrived_ns: int = 0
    # Stages that it has behind it.
    depth: int = 0
    # Some of it may go on to a deeper stage.
    may_continue: bool = False
    # Names of a model's outputs that are to stay in its worker.
    keep: frozenset[str] = frozenset()
    # Nobody waits for it.
    background: bool = False
    # How loaded the server was when it came.
    level: Level = Level.NORMAL


@dataclass(slots=True)
class InferResponse:
    """One answer; `parameters` says how it was made."""

    model: str
    version: str
    id: str
    outputs: Sequence[Tensor]
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    # By output, where the request decided what its positions mean; otherwise the endpoint's labels hold.
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)


def wanted(outputs: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """Those of `outputs` with these names, in their order; each is there."""
    if [tensor.name for tensor in outputs] == list(names):
        return list(outputs)
    by_name = {tensor.name: tensor for tensor in outputs}
    return [by_name[name] for name in names]
