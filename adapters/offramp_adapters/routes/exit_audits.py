"""What an early-exit route has seen of its own answers: how sure it was, and whether the reference agrees.

Whether an item is audited is decided by a coin that knows nothing of it, and the answer that is held against the
reference is the one that was served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from open_inference.tensor import Tensor

from offramp_adapters.audits.observation import ExitObservation
from offramp_adapters.routes.exit_computing import Group, computed, handed_on, rows_of
from offramp_adapters.routes.exit_stages import BoundExits
from offramp_adapters.routes.plan import Answer, FollowUp, Plan
from offramp_adapters.routes.strategy import Query

AUDIT = "audit"


@dataclass(slots=True, eq=False)
class Item:
    """One item of a request. The lists have an entry for each stage that it has visited."""

    place: int
    # Where it is in the stage's answer.
    rows: list[int] = field(default_factory=list)
    classes: list[int | None] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    # What was asked of the scores; of exits only.
    thresholds: list[float] = field(default_factory=list)
    # How often in a row it was answered as by the exit before.
    streak: int = 0
    # The stage where it has left.
    exit: int = -1


class Witness:
    """Reports on the items of one request, once all of them have left."""

    def __init__(
        self, exits: BoundExits, query: Query, rate: float, items: Sequence[Item], answers: Mapping[int, Answer]
    ) -> None:
        self._exits = exits
        self._query = query
        # Chance of an audit, as it was when the request came.
        self._rate = rate
        self._items = items
        self._answers = answers

    def report(self) -> tuple[tuple[ExitObservation, ...], tuple[FollowUp, ...]]:
        """What is known now, and what audits will tell."""
        last, rate = self._exits.last, self._rate
        seen: list[ExitObservation] = []
        deferred: list[Item] = []
        audited: list[Item] = []
        for item in self._items:
            if item.exit == last:
                deferred.append(item)
            elif rate and self._query.coin() < rate:
                audited.append(item)
            else:
                seen.append(self._observation(item, rate, audited=False))
        if deferred:
            seen.extend(self._deferred(deferred))
        follow_ups = tuple(self._audits(audited))
        if follow_ups:
            # Hidden state that no audit goes on from must not stay in its worker until they are done.
            self._answers = {at: Answer(self._exits.outputs_of(answer)) for at, answer in self._answers.items()}
        return tuple(seen), follow_ups

    def _deferred(self, items: Sequence[Item]) -> list[ExitObservation]:
        reference = self._answers[self._exits.last]
        agreed = self._agreed(items, reference, [item.classes[-1] for item in items])
        return [
            self._observation(item, 1.0, True, agrees, item.classes[-1])
            for item, agrees in zip(items, agreed, strict=True)
        ]

    def _audits(self, items: Sequence[Item]) -> list[FollowUp]:
        """One for each exit: those that left there go on together."""
        by_exit = groupby(sorted(items, key=lambda item: item.exit), key=lambda item: item.exit)
        return [self._audit(list(group)) for _, group in by_exit]

    def _audit(self, items: Sequence[Item]) -> FollowUp:
        def lost(reason: str) -> tuple[ExitObservation, ...]:
            return tuple(self._observation(item, self._rate, True, lost=reason) for item in items)

        return FollowUp(AUDIT, self._reference(items, self._group(items)), lost)

    def _reference(self, items: Sequence[Item], group: Group) -> Plan[tuple[ExitObservation, ...]]:
        stages, last = self._exits.stages, self._exits.last
        reference = yield from computed(stages, last, group)
        best, _ = stages[last].judge(reference)
        agreed = self._agreed(items, reference, best)
        return tuple(
            self._observation(item, self._rate, True, agrees, its_class)
            for item, agrees, its_class in zip(items, agreed, best, strict=True)
        )

    def _group(self, items: Sequence[Item]) -> Group:
        """They go on from where they left, if the reference is a later segment of the same network."""
        number = items[0].exit
        stage, answer = self._exits.stages[number], self._answers[number]
        whole = len(items) == len(self._items)
        places = None if whole else [item.place for item in items]
        group = Group(self._query.inputs, self._exits.last, places, next=number + 1)
        if stage.hands_on and self._exits.stages[self._exits.last].start <= number:
            group.handed = self._rows(handed_on(stage, answer), [item.rows[-1] for item in items])
        return group

    def _agreed(
        self, items: Sequence[Item], reference: Answer, classes: Sequence[int | None]
    ) -> Sequence[tuple[bool, ...]]:
        """Of each item, whether the answer of each exit that it has visited agrees with the reference's. They have
        visited the same ones; `classes` are the reference's."""
        visited = len(items[0].thresholds)
        if self._exits.agreement.kind == "class":
            return [
                tuple([best is not None and best == each for each in item.classes[:visited]])
                for item, best in zip(items, classes, strict=True)
            ]
        theirs = self._exits.outputs_of(reference)
        if len(items[0].rows) > visited:
            theirs = self._rows(theirs, [item.rows[-1] for item in items])
        columns = [self._compared(items, number, theirs) for number in range(visited)]
        return list(zip(*columns, strict=True))

    def _compared(self, items: Sequence[Item], number: int, theirs: Sequence[Tensor]) -> list[bool]:
        exits = self._exits
        ours = self._rows(exits.outputs_of(self._answers[number]), [item.rows[number] for item in items])
        return exits.agreement.compare(ours, theirs, exits.decides, exits.batched)

    def _rows(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        return rows_of(tensors, rows, tensors[0].shape[0]) if self._exits.batched else tensors

    def _observation(
        self,
        item: Item,
        probability: float,
        audited: bool,
        agreed: tuple[bool, ...] = (),
        reference: int | None = None,
        lost: str = "",
    ) -> ExitObservation:
        classifies, visited = self._exits.classifies, len(item.thresholds)
        return ExitObservation(
            self._query.epoch, self._query.sequence, item.place, item.exit, self._exits.last + 1,
            tuple(item.scores[:visited]), tuple(item.thresholds), probability, self._rate, audited, lost, agreed,
            item.classes[item.exit] if classifies else None, reference if classifies else None,
        )  # fmt: skip
