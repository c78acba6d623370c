"""One request on its way through the stages of an early-exit route."""

from __future__ import annotations

import math
from collections.abc import Sequence

from open_inference.tensor import Tensor

from offramp_adapters.routes.exit_audits import Item, Witness
from offramp_adapters.routes.exit_computing import Group, computed, handed_on, rows_of
from offramp_adapters.routes.exit_stages import BoundExits
from offramp_adapters.routes.exit_thresholds import Rules
from offramp_adapters.routes.exit_wishes import Wish
from offramp_adapters.routes.parameters import CONFIDENCE, EPOCH, EXIT, per_item
from offramp_adapters.routes.plan import Answer, ParameterValue, Plan, RouteRefused
from offramp_adapters.routes.rows import Part, ShapesDiffer, merge
from offramp_adapters.routes.strategy import Query


class Passage:
    """Every item is judged once at each stage that it visits: where a stage is computed again because hidden state was
    lost, what was decided there stays."""

    def __init__(self, exits: BoundExits, query: Query, rules: Rules, wish: Wish) -> None:
        self._exits = exits
        self._query = query
        self._rules = rules
        self._wish = wish
        self._items: list[Item] = []
        # Of the stages that were visited, by their numbers.
        self._answers: dict[int, Answer] = {}

    def plan(self) -> Plan[Answer]:
        self._check_batch()
        group = Group(self._query.inputs, self._wish.last, next=self._wish.first)
        here: list[Item] = []
        for number in range(self._wish.first, self._wish.last + 1):
            answer = yield from computed(self._exits.stages, number, group)
            self._answers[number] = answer
            if number == self._wish.first:
                here = self._items = self._arrived(answer)
            staying = self._judged(number, answer, here)
            if not staying:
                break
            self._hand_on(group, number, staying, len(here))
            here = staying
        return self._answer()

    def _check_batch(self) -> None:
        most, inputs = self._exits.max_items, self._query.inputs
        if most is not None and inputs and inputs[0].shape and inputs[0].shape[0] > most:
            raise RouteRefused(
                f'input "{inputs[0].name}": expected a batch size from 1 to {most}, got {inputs[0].shape[0]}'
            )

    def _arrived(self, answer: Answer) -> list[Item]:
        count = answer.outputs[0].shape[0] if self._exits.batched else 1
        return [Item(place) for place in range(count)]

    def _judged(self, number: int, answer: Answer, items: list[Item]) -> list[Item]:
        """Let those leave that may; the others."""
        classes, scores = self._exits.stages[number].judge(answer)
        for row, item in enumerate(items):
            item.rows.append(row)
            item.classes.append(classes[row])
        if self._exits.patience:
            scores = self._patience(number, items)
        exits, deepest = number < self._exits.last, number == self._wish.last
        staying: list[Item] = []
        for item, found in zip(items, scores, strict=True):
            # How many agree on what is no number says nothing.
            score = math.nan if item.classes[-1] is None else found
            item.scores.append(score)
            if exits:
                item.thresholds.append(self._asked(number, item))
            # NaN is no score that reaches anything.
            if deepest or score >= item.thresholds[-1]:
                item.exit = number
            else:
                staying.append(item)
        return staying

    def _asked(self, number: int, item: Item) -> float:
        threshold = self._rules.thresholds[number]
        best = item.classes[-1]
        value = threshold.value
        if threshold.by_class and best is not None:
            value = threshold.by_class.get(best, value)
        return max(value, self._wish.min_confidence)

    def _patience(self, number: int, items: list[Item]) -> list[float]:
        """How far each has come on the way to exits that agree often enough (Zhou et al., "BERT Loses Patience",
        2020)."""
        if number > self._wish.first:
            for item, same in zip(items, self._as_before(number, items), strict=True):
                item.streak = item.streak + 1 if same else 0
        return [min(1.0, item.streak / self._exits.patience) for item in items]

    def _as_before(self, number: int, items: list[Item]) -> list[bool]:
        exits = self._exits
        if exits.agreement.kind == "class":
            return [item.classes[-1] is not None and item.classes[-1] == item.classes[-2] for item in items]
        now, before = (
            rows_of(outputs, [item.rows[at] for item in items], self._count(outputs))
            for at, outputs in ((-1, self._outputs(number)), (-2, self._outputs(number - 1)))
        )
        return exits.agreement.compare(now, before, exits.decides, exits.batched)

    def _hand_on(self, group: Group, number: int, staying: Sequence[Item], count: int) -> None:
        stage = self._exits.stages[number]
        group.next, group.handed = number + 1, None
        if stage.hands_on:
            handed = handed_on(stage, self._answers[number])
            group.handed = rows_of(handed, [item.rows[-1] for item in staying], count)
        if len(staying) < len(self._items):
            group.places = [item.place for item in staying]

    def _answer(self) -> Answer:
        items = self._items
        numbers = sorted({item.exit for item in items}) or [self._wish.first]
        stages = self._exits.stages
        parameters = self._said_below(numbers)
        parameters[EXIT] = per_item([stages[item.exit].name for item in items])
        parameters[CONFIDENCE] = per_item([item.scores[-1] for item in items])
        parameters[EPOCH] = str(self._query.epoch)
        outputs = self._merged(numbers)
        labels = self._answers[numbers[0]].labels
        if self._wish.chosen:
            return Answer(outputs, labels, parameters, self._models(numbers))
        witness = Witness(self._exits, self._query, self._rules.audits, items, self._answers)
        observations, follow_ups = witness.report()
        return Answer(
            outputs, labels, parameters, self._models(numbers), observations=observations, follow_ups=follow_ups
        )

    def _said_below(self, numbers: Sequence[int]) -> dict[str, ParameterValue]:
        """What routes and models say of their answers, where all that are part of this one say the same."""
        first = self._answers[numbers[0]].parameters
        if len(numbers) == 1:
            return dict(first)
        others = [self._answers[number].parameters for number in numbers[1:]]
        return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}

    def _merged(self, numbers: Sequence[int]) -> Sequence[Tensor]:
        if len(numbers) == 1:
            return self._outputs(numbers[0])
        parts = []
        for number in numbers:
            leaving = [item for item in self._items if item.exit == number]
            rows, places = [item.rows[-1] for item in leaving], [item.place for item in leaving]
            parts.append(Part(self._outputs(number), rows, places))
        try:
            return merge(parts)
        except ShapesDiffer as error:
            raise RouteRefused(str(error)) from None

    def _models(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Of a network's segments all are part of the answer, up to the one that gave it."""
        first = numbers[0]
        if len(numbers) == 1 and self._exits.stages[first].start == first:
            return self._answers[first].models
        used = (at for number in numbers for at in range(self._exits.stages[number].start, number + 1))
        return tuple(dict.fromkeys(model for at in used for model in self._answers[at].models))

    def _outputs(self, number: int) -> Sequence[Tensor]:
        return self._exits.outputs_of(self._answers[number])

    def _count(self, outputs: Sequence[Tensor]) -> int:
        return outputs[0].shape[0] if self._exits.batched else 1
