"""Which of the candidates that were timed is taken. Numbers in, labels out."""

from __future__ import annotations

from collections.abc import Mapping

from offramp_server.model_spec import ModelSpec
from offramp_server.tuning.decision import Measurement

# A candidate this much slower than the best in a first look is not timed again: other load on a machine makes two
# looks at the same engine differ by 20 % at times, hardly ever by more.
CONTENDER = 1.3
# A smaller difference does not replace a candidate that comes earlier, which is simpler.
WORTHWHILE = 0.03
# Seconds for a full batch. What is faster gains nothing that a client would see beside the call itself, which costs as
# much; and it is what most models of tests and examples take.
TRIVIAL_SECONDS = 0.0005


def contenders(measured: Mapping[str, Measurement]) -> list[str]:
    """The labels that are worth a second look, in their order."""
    best = min((each.score for each in measured.values()), default=0.0)
    return [label for label, each in measured.items() if each.score <= CONTENDER * best]


def winner(measured: Mapping[str, Measurement]) -> str:
    """The earliest of those that nothing beats by 3 %. `measured` is in order of preference and not empty."""
    best = min(each.score for each in measured.values())
    return next(label for label, each in measured.items() if each.score * (1 - WORTHWHILE) <= best)


def thread_counts(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    doubled = [1 << power for power in range(limit.bit_length()) if 1 << power < limit]
    return [*doubled, limit]


def is_trivial(spec: ModelSpec, seconds_by_items: Mapping[int, float]) -> bool:
    """Whether the model is too quick for its engine to matter. False where nothing was timed."""
    seconds = seconds_by_items.get(full_batch(spec))
    return seconds is not None and seconds < TRIVIAL_SECONDS


def full_batch(spec: ModelSpec) -> int:
    """Items of the largest batch that is warmed up; 1 for a model without a batch dimension."""
    return max(spec.warmup.batch_sizes or (max(1, spec.max_batch_size),)) if spec.batches else 1


# Words


def because_trivial(spec: ModelSpec, seconds: float) -> str:
    return (
        f"auto: the plain engine; {_batch(full_batch(spec))} takes {_ms(seconds)}, and engines are compared from "
        f"{_ms(TRIVIAL_SECONDS)} on"
    )


def because_measured(spec: ModelSpec, chosen: str, plain: str, measured: Mapping[str, Measurement]) -> str:
    best = measured[chosen]
    batch = _batch(full_batch(spec))
    if chosen == plain:
        many = f"nothing else of {len(measured)} that agree is 3 % faster"
        compared = "nothing else could be timed" if len(measured) == 1 else many
        return f"auto: the plain engine; {compared}; {batch} takes {_ms(best.full)}, one item {_ms(best.first)}"
    fastest = (
        f"auto: the fastest of {len(measured)} that agree; {batch} takes {_ms(best.full)}, one item {_ms(best.first)}"
    )
    before = measured.get(plain)
    return fastest if before is None else f"{fastest}, with {plain} {_ms(before.full)} and {_ms(before.first)}"


def _batch(items: int) -> str:
    return f"a batch of {items}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
