"""One of several models or routes answers, by a unit's share of the traffic; others see copies and are compared.

A unit (the request's `offramp_unit`) has the same arm every time; a request without one is assigned by itself. Shadows
get a copy once the answer is out: nothing that they do can delay or change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from offramp_common.text import did_you_mean, quoted
from open_inference.tensor import Tensor

from offramp_adapters.audits.observation import Observation, ShadowObservation
from offramp_adapters.audits.subject import NOT_IN_ANSWERS, NOT_JUDGED
from offramp_adapters.confidence.agreement import Agreement, best_classes
from offramp_adapters.control.rules import LoadRule
from offramp_adapters.experiments.assignment import assign, choose
from offramp_adapters.routes.alike import check_inputs, check_outputs, public_outputs
from offramp_adapters.routes.deciding import deciding_output
from offramp_adapters.routes.parameters import ARM, ASSIGNED, UNIT, check_route
from offramp_adapters.routes.parts import Part
from offramp_adapters.routes.plan import (
    Answer,
    FollowUp,
    Parameters,
    Plan,
    RouteRefused,
    Run,
    Shed,
    Target,
    alone,
)
from offramp_adapters.routes.strategy import Endpoint, Face, Level, Query, RouteInvalid

_WEIGHT, _SHARE = "weight.", "share."
# How a request came to its arm.
BY_UNIT, BY_COIN, BY_REQUEST = "unit", "coin", "request"
# Why a shadow did not get its copy at a level of load at which shadows get none.
LOAD = "load"
_CHANGES_NOTHING = LoadRule()
# Characters. All of them are hashed for each arm, on the one thread that serves everybody.
MAX_UNIT = 1024


@dataclass(frozen=True, slots=True)
class Arm:
    """`weight` counts in proportion to those of the others. One without runs for requests that ask for it."""

    name: str
    target: Target
    weight: float = field(metadata=NOT_JUDGED)


@dataclass(frozen=True, slots=True)
class Shadow:
    """`share` of the requests are copied to it."""

    name: str
    target: Target
    share: float = field(default=1.0, metadata=NOT_IN_ANSWERS)


@dataclass(frozen=True, slots=True)
class SplitRoute:
    """`kind = "split"`. Raises RouteInvalid for what does not go together whatever the targets are."""

    # Another salt assigns all units anew, independently of the first.
    salt: str
    arms: tuple[Arm, ...]
    shadows: tuple[Shadow, ...] = ()
    # Of a shadow with the answer that was served.
    agreement: Agreement = field(default_factory=Agreement)
    # The deciding output, by which that is judged; None: the one that looks like it.
    output: str | None = None
    load: Mapping[Level, LoadRule] = field(default_factory=dict, metadata=NOT_JUDGED)
    kind: ClassVar[str] = "split"

    def __post_init__(self) -> None:
        if not self.arms:
            raise RouteInvalid("a split needs at least one arm")
        names = [part.label for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise RouteInvalid(f"two arms or shadows are named {quoted(name)}; give each a name of its own")
        for arm in self.arms:
            if not 0 <= arm.weight < math.inf:
                raise RouteInvalid(f"{_WEIGHT}{arm.name}: expected a number of at least 0, got {arm.weight:g}")
        together = sum(arm.weight for arm in self.arms)
        if not together:
            raise RouteInvalid("every arm has weight 0; expected one with more")
        if together == math.inf:
            raise RouteInvalid("the arms' weights are too large to be added; expected smaller ones")
        for shadow in self.shadows:
            if not 0 <= shadow.share <= 1:
                raise RouteInvalid(f"{_SHARE}{shadow.name}: expected a number from 0 to 1, got {shadow.share:g}")

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(part.target for part in self.parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (
            *(Part(arm.target, "arm", arm.name) for arm in self.arms),
            *(Part(shadow.target, "shadow", shadow.name) for shadow in self.shadows),
        )

    def settings(self) -> Mapping[str, float]:
        """What can be set live."""
        weights = {f"{_WEIGHT}{arm.name}": arm.weight for arm in self.arms}
        return {**weights, **{f"{_SHARE}{shadow.name}": shadow.share for shadow in self.shadows}}

    def with_settings(self, changes: Mapping[str, float]) -> SplitRoute:
        """Raises RouteInvalid."""
        known = self.settings()
        for key in changes:
            if key not in known:
                raise RouteInvalid(f"this route has no setting {quoted(key)}{did_you_mean(key, known)}")
        new = {**known, **changes}
        return replace(
            self,
            arms=tuple(replace(arm, weight=new[f"{_WEIGHT}{arm.name}"]) for arm in self.arms),
            shadows=tuple(replace(shadow, share=new[f"{_SHARE}{shadow.name}"]) for shadow in self.shadows),
        )

    def bind(self, endpoints: Mapping[Target, Endpoint]) -> Split:
        arms = [arm.target for arm in self.arms]
        check_inputs(self.targets, endpoints)
        check_outputs(arms, [shadow.target for shadow in self.shadows], endpoints)
        labelled = next((arm for arm in arms if any(output.labels for output in endpoints[arm].outputs)), arms[0])
        face = Face(
            takes=arms[0],
            gives=labelled,
            outputs=tuple(public_outputs(endpoints[labelled])),
            max_batch_size=min(endpoints[arm].max_batch_size for arm in arms),
            scores=frozenset.intersection(*(endpoints[arm].scores for arm in arms)),
        )
        return Split(self, face, self._judged(labelled, endpoints[labelled]))

    def _judged(self, target: Target, endpoint: Endpoint) -> str:
        """The output by which shadows are compared; "": by all of them."""
        if not self.shadows or self.agreement.kind == "tolerance":
            return ""
        decides = deciding_output(endpoint, f'"{target}"', self.output)
        self.agreement.check(decides)
        return decides.name


@dataclass(frozen=True, slots=True)
class Split:
    """The answer is the arm's own."""

    route: SplitRoute
    face: Face
    # The output by which shadows are compared; "": by all of them.
    judged: str
    kind: ClassVar[str] = "split"

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.route.targets

    def plan(self, query: Query) -> Plan[Answer]:
        rule = self.route.load.get(query.level, _CHANGES_NOTHING)
        # Before anything of the request is looked at, so that those who are left are drawn like all of them.
        if rule.shed > 0 and query.coin() < rule.shed:
            raise Shed(f"the server is {query.level.name.lower()} and sheds {rule.shed:.0%} of this route's requests")
        arm, assigned = self._arm(query)
        answer = yield from alone(Run(arm.target, arm="" if assigned == BY_REQUEST else arm.name))
        copies = () if assigned == BY_REQUEST else self._copies(query, rule, arm, answer)
        return replace(answer, parameters=_told(answer, arm, assigned), observations=(), follow_ups=copies)

    def _arm(self, query: Query) -> tuple[Arm, str]:
        """And how the request came to it."""
        arms = {arm.name: arm for arm in self.route.arms}
        wanted = check_route(query.parameters, self.kind, [arm.target for arm in self.route.arms])
        if wanted is not None:
            return next(arm for arm in self.route.arms if arm.target == wanted), BY_REQUEST
        weights = {arm.name: arm.weight for arm in self.route.arms}
        unit = unit_of(query.parameters)
        if unit is None:
            return arms[choose(weights, query.coin())], BY_COIN
        return arms[assign(self.route.salt, weights, unit)], BY_UNIT

    def _copies(self, query: Query, rule: LoadRule, arm: Arm, answer: Answer) -> tuple[FollowUp, ...]:
        drawn = [shadow for shadow in self.route.shadows if shadow.share > 0 and query.coin() < shadow.share]
        return tuple(self._copy(query, rule, arm, shadow, answer) for shadow in drawn)

    def _copy(self, query: Query, rule: LoadRule, arm: Arm, shadow: Shadow, answer: Answer) -> FollowUp:
        seen = _Comparison(self, query, arm, shadow, answer.outputs)
        return FollowUp("shadow", seen.plan(), seen.lost, dropped="" if rule.shadows else LOAD)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Of one shadow with one answer."""

    split: Split
    query: Query
    arm: Arm
    shadow: Shadow
    served: Sequence[Tensor]

    def plan(self) -> Plan[tuple[Observation, ...]]:
        answer = yield from alone(Run(self.shadow.target))
        names = self.split.face.outputs
        return self._compared([tensor for tensor in answer.outputs if tensor.name in names])

    def lost(self, reason: str) -> tuple[Observation, ...]:
        return tuple(self._observation(item, lost=reason) for item in range(self._items))

    @property
    def _batched(self) -> bool:
        return self.split.face.max_batch_size > 0

    @property
    def _items(self) -> int:
        return self.served[0].shape[0] if self._batched else 1

    def _compared(self, shadowed: Sequence[Tensor]) -> tuple[Observation, ...]:
        """The answer that was served is the reference here."""
        agreed = self.split.route.agreement.compare(shadowed, self.served, self.split.judged, self._batched)
        classes = zip(self._classes(self.served), self._classes(shadowed), strict=True)
        return tuple(
            self._observation(item, agreed=same, served=ours, shadowed=theirs)
            for item, (same, (ours, theirs)) in enumerate(zip(agreed, classes, strict=True))
        )

    def _classes(self, outputs: Sequence[Tensor]) -> list[int | None]:
        if not self.split.route.agreement.of_classes:
            return [None] * self._items
        return next(best_classes(tensor, self._batched) for tensor in outputs if tensor.name == self.split.judged)

    def _observation(
        self,
        item: int,
        lost: str = "",
        agreed: bool | None = None,
        served: int | None = None,
        shadowed: int | None = None,
    ) -> ShadowObservation:
        query = self.query
        return ShadowObservation(
            query.epoch, query.sequence, item, self.arm.name, self.shadow.name, lost, agreed, served, shadowed
        )


def unit_of(parameters: Parameters) -> str | int | None:
    """Who the request is for; an empty text is nobody. Raises RouteRefused."""
    unit = parameters.get(UNIT)
    if unit is None or unit == "":
        return None
    if isinstance(unit, bool) or not isinstance(unit, str | int):
        raise RouteRefused(f'parameter "{UNIT}": expected a string or an integer, got {unit!r}')
    if isinstance(unit, str) and len(unit) > MAX_UNIT:
        raise RouteRefused(f'parameter "{UNIT}": expected at most {MAX_UNIT} characters, got {len(unit)}')
    return unit


def _told(answer: Answer, arm: Arm, assigned: str) -> Parameters:
    below = answer.parameters.get(ARM)
    name = arm.name if below is None else f"{arm.name}/{below}"
    return {**answer.parameters, ARM: name, ASSIGNED: assigned}
