"""What an input of a fuzzer says: a few choices, and steps. Any bytes are an input, and every input has its bytes.

A step has the same five parts whatever it does, so that a changed byte changes one step and not the meaning of all
that follow. What the parts mean is the target's affair. The number of an operation is taken modulo how many a target
has, so one more makes most of its corpus mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from hypothesis import strategies as st

_STEP_BYTES = 5
# More than that is slow and finds nothing that fewer do not find.
MOST_STEPS = 60
_SHORT = 12
# Values at which something may change come more often than others.
_NOTABLE = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 191, 192, 254, 255)


@dataclass(frozen=True, slots=True)
class Step:
    """Each number is a byte; `blob` has at most 255."""

    operation: int
    stream: int = 0
    value: int = 0
    flags: int = 0
    blob: bytes = b""


@dataclass(frozen=True, slots=True)
class Script:
    """`setup` is a byte: what the target makes of it."""

    setup: int
    steps: tuple[Step, ...]


def read_script(data: bytes) -> Script:
    return Script(data[0] if data else 0, tuple(_steps(data)))


def _steps(data: bytes) -> Iterator[Step]:
    at = 1
    for _ in range(MOST_STEPS):
        if at >= len(data):
            return
        operation, stream, value, flags, size = data[at : at + _STEP_BYTES].ljust(_STEP_BYTES, b"\0")
        at += _STEP_BYTES
        yield Step(operation, stream, value, flags, data[at : at + size])
        at += size


def write_script(script: Script) -> bytes:
    steps = (
        bytes((step.operation, step.stream, step.value, step.flags, len(step.blob))) + step.blob
        for step in script.steps
    )
    return bytes((script.setup,)) + b"".join(steps)


# For Hypothesis

_BYTE = st.one_of(st.integers(0, 255), st.sampled_from(_NOTABLE))


def scripts(operations: int, most_steps: int = MOST_STEPS) -> st.SearchStrategy[Script]:
    """`operations`: how many the target has."""
    blobs = st.binary(max_size=_SHORT)
    step = st.builds(Step, st.integers(0, operations - 1), st.integers(0, 4) | _BYTE, _BYTE, _BYTE, blobs)
    return st.builds(Script, st.just(0) | _BYTE, st.lists(step, max_size=most_steps).map(tuple))


# For a fuzzer that is guided by coverage


def mutated(data: bytes, most_bytes: int, seed: int, mutate_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """Another input that is like `data`. `mutate_bytes` is the fuzzer's own way, which knows nothing of steps."""
    random = Random(seed)
    if random.random() < 0.2:
        return mutate_bytes(data, most_bytes)
    script = read_script(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        script = random.choice(_MUTATIONS)(script, random)
    return write_script(script)[:most_bytes]


def crossed(one: bytes, other: bytes, most_bytes: int, seed: int) -> bytes:
    """The beginning of one and the end of the other."""
    random = Random(seed)
    first, second = read_script(one), read_script(other)
    steps = first.steps[: _place(first, random)] + second.steps[_place(second, random) :]
    return write_script(Script(first.setup, steps[:MOST_STEPS]))[:most_bytes]


def _place(script: Script, random: Random) -> int:
    return random.randint(0, len(script.steps))


def _any_byte(random: Random) -> int:
    return random.choice(_NOTABLE) if random.random() < 0.5 else random.randrange(256)


def _any_step(random: Random) -> Step:
    blob = random.randbytes(random.randrange(_SHORT)) if random.random() < 0.3 else b""
    return Step(random.randrange(64), random.randrange(4), _any_byte(random), _any_byte(random), blob)


def _with_another(script: Script, random: Random) -> Script:
    at = _place(script, random)
    return replace(script, steps=(*script.steps[:at], _any_step(random), *script.steps[at:])[:MOST_STEPS])


def _with_a_part_again(script: Script, random: Random) -> Script:
    start, end = sorted((_place(script, random), _place(script, random)))
    at = _place(script, random)
    steps = script.steps[:at] + script.steps[start:end] + script.steps[at:]
    return replace(script, steps=steps[:MOST_STEPS])


def _without_a_part(script: Script, random: Random) -> Script:
    start = _place(script, random)
    end = start + random.choice((1, 1, 2, 5))
    return replace(script, steps=script.steps[:start] + script.steps[end:])


def _with_one_changed(script: Script, random: Random) -> Script:
    if not script.steps:
        return _with_another(script, random)
    at = random.randrange(len(script.steps))
    part = random.choice(("operation", "stream", "value", "flags", "flags", "blob"))
    change: dict[str, int | bytes]
    if part == "blob":
        change = {part: random.randbytes(random.randrange(_SHORT))}
    elif part == "flags" and random.random() < 0.7:
        change = {part: script.steps[at].flags ^ 1 << random.randrange(8)}
    else:
        change = {part: _any_byte(random)}
    step = replace(script.steps[at], **change)  # type: ignore[arg-type]
    return replace(script, steps=(*script.steps[:at], step, *script.steps[at + 1 :]))


def _with_two_exchanged(script: Script, random: Random) -> Script:
    if len(script.steps) < 2:
        return _with_another(script, random)
    steps = list(script.steps)
    at = random.randrange(len(steps) - 1)
    steps[at], steps[at + 1] = steps[at + 1], steps[at]
    return replace(script, steps=tuple(steps))


def _with_another_setup(script: Script, random: Random) -> Script:
    return replace(script, setup=_any_byte(random))


_MUTATIONS: tuple[Callable[[Script, Random], Script], ...] = (
    _with_another,
    _with_another,
    _with_another,
    _with_a_part_again,
    _without_a_part,
    _with_one_changed,
    _with_one_changed,
    _with_one_changed,
    _with_two_exchanged,
    _with_another_setup,
)
