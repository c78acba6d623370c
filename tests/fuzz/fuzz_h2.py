"""The engine beside h2's state machine, guided by coverage: the steps that Hypothesis takes in the unit tests."""

from __future__ import annotations

from fuzz_steps import read_script
from http2_beside_h2 import OF_A_STREAM, OF_THE_CONNECTION, SIZES, STREAMS, compare

_NAMES = tuple(dict.fromkeys(OF_A_STREAM + OF_THE_CONNECTION))
OPERATIONS = len(_NAMES)


def check(data: bytes) -> None:
    """Raises AssertionError where the two do not mean the same."""
    compare(
        (
            _NAMES[step.operation % OPERATIONS],
            STREAMS[step.stream % len(STREAMS)],
            SIZES[step.value % len(SIZES)],
            bool(step.flags & 1),
        )
        for step in read_script(data).steps
    )
