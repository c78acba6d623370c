"""Computing one stage of an early-exit route for some items of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from open_inference.tensor import Tensor

from offramp_adapters.routes.exit_stages import BoundStage
from offramp_adapters.routes.exit_wishes import HEEDED
from offramp_adapters.routes.plan import Answer, Plan, Run, StateLost, Target, Together
from offramp_adapters.routes.rows import take

# How often hidden state may be lost on the way to one answer. Each time a worker has died.
MAX_LOSSES = 3


@dataclass(slots=True, eq=False)
class Group:
    """Items of one request that go on together."""

    # What the request has brought, of all its items.
    inputs: Sequence[Tensor]
    # The deepest stage that they may come to.
    last: int
    # Which of them these are, in ascending order; None: all.
    places: list[int] | None = None
    # What they have been handed for the stage `next`; None: nothing, or it was lost.
    handed: Sequence[Tensor] | None = None
    next: int = 0
    # Whether hidden state may stay in the worker. Once it was lost it travels: then the server can tell which of the
    # requests there it is that ends workers, and no other loses anything with it.
    keeps: bool = True


def computed(stages: Sequence[BoundStage], number: int, group: Group) -> Plan[Answer]:
    """What the stage says of these items. If they have not been handed what it takes, the stages before it are computed
    first, from the one where its network begins. Raises StateLost if that happens again and again."""
    start = stages[number].start
    at = start if group.handed is None else max(start, group.next)
    losses = 0
    while True:
        try:
            [answer] = yield _step(stages, at, group)
        except StateLost:
            losses += 1
            if losses > MAX_LOSSES:
                raise
            group.handed, group.keeps, at = None, False, start
            continue
        # It is waited for.
        assert answer is not None
        if at == number:
            return answer
        group.handed = handed_on(stages[at], answer)
        at += 1


def handed_on(stage: BoundStage, answer: Answer) -> list[Tensor]:
    """What the next stage takes of it."""
    by_name = {tensor.name: tensor for tensor in answer.outputs}
    return [by_name[name] for name in stage.hands_on]


def rows_of(tensors: Sequence[Tensor], rows: Sequence[int], count: int) -> Sequence[Tensor]:
    """These of `count` rows, in ascending order; without a copy if they are all."""
    return tensors if len(rows) == count else take(tensors, rows)


def _step(stages: Sequence[BoundStage], number: int, group: Group) -> Together:
    stage = stages[number]
    inputs = group.handed
    if stage.start == number:
        if group.places is None and group.keeps and group.last == len(stages) - 1:
            return stage.whole
        inputs = None if group.places is None else take(group.inputs, group.places)
    keep = stage.keep if group.keeps else frozenset[str]()
    return step(stage.target, number, inputs, stage.inputs_are, number < group.last, keep)


def step(
    target: Target,
    number: int,
    inputs: Sequence[Tensor] | None = None,
    inputs_are: str = "",
    may_continue: bool = False,
    keep: frozenset[str] = frozenset(),
) -> Together:
    """The run of one stage by itself."""
    run = Run(target, inputs, inputs_are, depth=number, may_continue=may_continue, keep=keep, heeded=HEEDED)
    return Together((run,))
