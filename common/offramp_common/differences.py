"""How far two arrays are apart, where both may have NaN and infinity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


def largest_difference(expected: Values, actual: Values) -> float:
    """The largest absolute difference of two arrays of numbers or booleans of one shape; 0 for empty ones.

    Infinite where one has a NaN or an infinity and the other has not the same.
    """
    same = (expected == actual) | (_is_nan(expected) & _is_nan(actual))
    # In double precision, that integers do not wrap around and FP16 does not overflow.
    with np.errstate(invalid="ignore"):
        gaps = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    largest = float(np.where(same, 0.0, gaps).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def largest_value(array: Values) -> float:
    """The largest finite absolute value; 0 if there is none."""
    values = array.astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _is_nan(array: Values) -> NDArray[np.bool_]:
    # numpy refuses to ask integers.
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, np.bool_)
