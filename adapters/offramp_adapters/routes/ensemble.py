"""Several models or routes answer together.

All run side by side. With `quorum`, the answer is made of those that are in when the deadline is near, or when others
have failed. A member that gives NaN for an item is missing for that item; an item for which fewer than `quorum` members
are left (without one: fewer than all) is answered with NaN, as nothing is known of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from offramp_common.text import did_you_mean, quoted
from open_inference.tensor import Tensor

from offramp_adapters.confidence.temperature import TEMPERATURES
from offramp_adapters.routes import combine
from offramp_adapters.routes.alike import check_classes, check_inputs
from offramp_adapters.routes.combine import Floats, Stack
from offramp_adapters.routes.deciding import Deciding, Scale, deciding_output
from offramp_adapters.routes.parameters import COMBINE, CONFIDENCE, check_route, per_item
from offramp_adapters.routes.parts import Part
from offramp_adapters.routes.plan import Answer, Outcomes, Plan, RouteRefused, Run, Target, Together, alone
from offramp_adapters.routes.strategy import Endpoint, Face, Query, RouteInvalid

Combine: TypeAlias = Literal["mean", "weighted_mean", "vote", "stack"]

# The name of the score in Answer.scores.
AGREEMENT = "agreement"
_WEIGHTED = ("weighted_mean", "vote")
_WEIGHT, _TEMPERATURE = "weight.", "temperature."


@dataclass(frozen=True, slots=True)
class Member:
    """`weight` counts for "weighted_mean" and "vote", in proportion to those of the others; one without is not run.
    What the member says is divided by `temperature` on the scale of logits."""

    target: Target
    weight: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class EnsembleRoute:
    """`kind = "ensemble"`. Raises RouteInvalid for what does not go together whatever the members are."""

    members: tuple[Member, ...]
    combine: Combine = "mean"
    output: str | None = None
    scale: Scale | None = None
    # None: all.
    quorum: int | None = None
    # Seconds.
    margin: float = 0.002
    stack: Stack | None = None
    kind: ClassVar[str] = "ensemble"

    def __post_init__(self) -> None:
        _check_members(self)
        if (self.combine == "stack") != (self.stack is not None):
            raise RouteInvalid(
                'combine = "stack" needs the weights that offramp fit-ensemble fits'
                if self.stack is None
                else f'weights of a stack belong to combine = "stack", not {quoted(self.combine)}'
            )

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(member.target for member in self.members)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(member.target, "member", str(member.target)) for member in self.members)

    @property
    def taking_part(self) -> tuple[Member, ...]:
        """Those that are run."""
        return tuple(member for member in self.members if member.weight > 0 or self.combine not in _WEIGHTED)

    def settings(self) -> Mapping[str, float]:
        """What can be set live."""
        weights = {f"{_WEIGHT}{member.target}": member.weight for member in self.members}
        temperatures = {f"{_TEMPERATURE}{member.target}": member.temperature for member in self.members}
        return {**(weights if self.combine in _WEIGHTED else {}), **temperatures}

    def with_settings(self, changes: Mapping[str, float]) -> EnsembleRoute:
        """Raises RouteInvalid."""
        known = self.settings()
        for key in changes:
            if key not in known:
                raise RouteInvalid(f"this route has no setting {quoted(key)}{did_you_mean(key, known)}")
        new = {**known, **changes}
        members = tuple(
            Member(
                member.target,
                new.get(f"{_WEIGHT}{member.target}", member.weight),
                new[f"{_TEMPERATURE}{member.target}"],
            )
            for member in self.members
        )
        return replace(self, members=members)

    def bind(self, endpoints: Mapping[Target, Endpoint]) -> Ensemble:
        check_inputs(self.targets, endpoints)
        deciding = {
            target: deciding_output(endpoints[target], f'"{target}"', self.output, self.scale)
            for target in self.targets
        }
        check_classes(self.targets, deciding)
        labelled = next((target for target in self.targets if deciding[target].facts.labels), self.targets[0])
        decides = deciding[labelled]
        _check_count(decides, self.stack, len(self.members))
        batches = min(endpoints[target].max_batch_size for target in self.targets)
        face = Face(self.targets[0], labelled, (decides.name,), batches, frozenset({AGREEMENT}))
        return Ensemble(self, face, decides, self._step(), self._weights(), self._temperatures(), _arrays(self.stack))

    def _step(self) -> Together:
        return Together(tuple(Run(member.target) for member in self.taking_part), self.quorum, self.margin)

    def _weights(self) -> Floats:
        return np.array([member.weight if self.combine in _WEIGHTED else 1.0 for member in self.taking_part])

    def _temperatures(self) -> Floats:
        return np.array([member.temperature for member in self.taking_part])[:, None, None]


def _check_members(route: EnsembleRoute) -> None:
    if not route.members:
        raise RouteInvalid("an ensemble needs at least one member")
    for member in route.members:
        if route.targets.count(member.target) > 1:
            raise RouteInvalid(f'member "{member.target}" is named twice; give it another weight instead')
        if not 0 <= member.weight < math.inf:
            raise RouteInvalid(f"{_WEIGHT}{member.target}: expected a number of at least 0, got {member.weight:g}")
        low, high = TEMPERATURES
        if not low <= member.temperature <= high:
            raise RouteInvalid(
                f"{_TEMPERATURE}{member.target}: expected a number from {low:g} to {high:g}, got {member.temperature:g}"
            )
    count = len(route.taking_part)
    if not count:
        raise RouteInvalid("every member has weight 0; expected one with more")
    if route.quorum is not None and not 1 <= route.quorum <= count:
        raise RouteInvalid(f"quorum: expected 1 to {count}, the members with a weight, got {route.quorum}")


def _check_count(decides: Deciding, stack: Stack | None, members: int) -> None:
    if decides.classes == 1:
        raise RouteInvalid(f"output {decides.facts} has one class; there is nothing to combine with fewer than two")
    if stack is None:
        return
    if decides.classes < 0:
        raise RouteInvalid(f'output {decides.facts}: combine = "stack" needs a fixed number of classes')
    rows, columns = len(stack.weights), len(stack.bias)
    if (rows, columns) != (members * decides.classes, decides.classes):
        raise RouteInvalid(
            f"the stack was fitted for {rows} log-probabilities and {columns} classes; the {members} members have "
            f"{members * decides.classes} of {decides.classes} classes; run offramp fit-ensemble again"
        )


def _arrays(stack: Stack | None) -> tuple[Floats, Floats] | None:
    return None if stack is None else (np.array(stack.weights), np.array(stack.bias))


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """The answer has the members' deciding output alone, by its name, on its scale, in its datatype: logits are the
    logarithms of the combined probabilities."""

    route: EnsembleRoute
    face: Face
    decides: Deciding
    # What runs, and of those that run: weights, [members], and temperatures, [members, 1, 1].
    step: Together
    weights: Floats
    temperatures: Floats
    # Weights [members * classes, classes] and bias [classes].
    stack: tuple[Floats, Floats] | None = None
    kind: ClassVar[str] = "ensemble"

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.route.targets

    def plan(self, query: Query) -> Plan[Answer]:
        alone_wanted = check_route(query.parameters, self.kind, self.targets)
        if alone_wanted is not None:
            return (yield from alone(Run(alone_wanted)))
        return self._combined((yield self.step))

    def _combined(self, outcomes: Outcomes) -> Answer:
        said = combine.probabilities_of(self._values(outcomes), self.decides.scale, self.temperatures)
        # [members, items]
        there = combine.known(said)
        weights = self.weights[:, None] * there
        combined = self._probabilities(said, weights, there)
        agreement = combine.agreement(said, weights, combined, float(self.weights.sum()))
        if not there.all():
            enough = there.sum(axis=0) >= (self.route.quorum or len(there))
            combined, agreement = np.where(enough[:, None], combined, np.nan), np.where(enough, agreement, 0.0)
        parameters = {CONFIDENCE: per_item(combine.confidence(combined).tolist())}
        if self.stack is not None:
            parameters[COMBINE] = per_item("stack" if whole else "mean" for whole in combine.by_all(there))
        return Answer(
            [self._tensor(combined)],
            # Those that the request decided are the same for all.
            labels=next(answer.labels for answer in outcomes if answer is not None),
            parameters=parameters,
            models=_models(outcomes, there),
            scores={AGREEMENT: agreement},
        )

    def _values(self, outcomes: Outcomes) -> Floats:
        """[members, items, classes]; NaN for members that did not answer."""
        given = [None if answer is None else _numbers(answer, self.decides.name) for answer in outcomes]
        shapes = {values.shape for values in given if values is not None}
        if len(shapes) > 1:
            said = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise RouteRefused(
                f"the members answer this request with {self.decides.name} of shapes {said}; expected one shape"
            )
        [shape] = shapes
        values = np.full((len(given), *shape), np.nan)
        for member, numbers in enumerate(given):
            if numbers is not None:
                values[member] = numbers
        return values if self.face.max_batch_size else values[:, None]

    def _probabilities(self, said: Floats, weights: Floats, there: NDArray[np.bool_]) -> Floats:
        """[items, classes]."""
        if self.route.combine == "vote":
            return combine.vote(said, weights)
        if self.stack is None:
            return combine.mean(said, weights)
        by_stack = combine.stacked(said, *self.stack)
        if there.all():
            return by_stack
        return np.where(combine.by_all(there)[:, None], by_stack, combine.mean(said, weights))

    def _tensor(self, probabilities: Floats) -> Tensor:
        values = combine.as_scale(probabilities, self.decides.scale)
        facts = self.decides.facts
        return Tensor.from_numpy(facts.name, values if self.face.max_batch_size else values[0], facts.datatype)


def _numbers(answer: Answer, name: str) -> NDArray[np.floating]:
    for output in answer.outputs:
        if output.name == name:
            return output.numpy()
    raise AssertionError(f"a target that was bound for its output {name} has answered without it")


def _models(outcomes: Outcomes, there: NDArray[np.bool_]) -> tuple[str, ...]:
    """Of the members that have said something of at least one item."""
    named = [
        answer.models for answer, said in zip(outcomes, there, strict=True) if answer is not None and bool(said.any())
    ]
    return tuple(dict.fromkeys(model for models in named for model in models))
