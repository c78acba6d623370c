"""Does one engine answer as another one does? Needs no library that computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

from offramp_common.differences import largest_difference, largest_value
from open_inference.tensor import BYTES, Tensor

from offramp_server.model_spec import ModelSpec

# What another order of additions makes of an answer, relative to its largest value.
_TOLERANCES = MappingProxyType({"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2})
# A value on the border of two quanta falls to the other side in another engine, and the next layers multiply that.
_QUANTISED_TOLERANCE = 0.1


def tolerance(spec: ModelSpec) -> float:
    """What `compare` may return for an engine that computes this model as it should."""
    computed = _TOLERANCES[spec.engine.precision]
    return max(computed, _QUANTISED_TOLERANCE) if spec.quantized else computed


def compare(answers: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any element, relative to the largest value of that output in `expected`.

    0: the same, also for outputs without elements. Infinite: not comparable, which is another number of outputs,
    another datatype or shape, other strings, or NaN or infinity in one of the two only. Differences of an output that
    is zero throughout are taken as they are; those of integers and booleans count as those of floats do.
    """
    if len(answers) != len(expected):
        return math.inf
    return max((_difference(*pair) for pair in zip(answers, expected, strict=True)), default=0.0)


def _difference(answer: Tensor, expected: Tensor) -> float:
    if (answer.datatype, answer.shape) != (expected.datatype, expected.shape):
        return math.inf
    found, wanted = answer.numpy(), expected.numpy()
    if answer.datatype == BYTES:
        return 0.0 if bool((found == wanted).all()) else math.inf
    return largest_difference(wanted, found) / (largest_value(wanted) or 1.0)
