"""A few examples of many."""

from __future__ import annotations

import numpy as np

from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import DataError


def sample(data: Dataset, count: int, seed: int = 0) -> Dataset:
    """`count` examples of `data` drawn by `seed` without replacement, in their order there; all if there are fewer."""
    if count >= len(data):
        return data
    return data.take(np.sort(np.random.default_rng(seed).choice(len(data), count, replace=False)))


def two_samples(data: Dataset, first: int, second: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """At most `first` examples of `data`, and at most `second` others; where there are too few, in that proportion.

    Raises DataError if that leaves one of the two empty.
    """
    drawn = np.random.default_rng(seed).permutation(len(data))
    share = min(1.0, len(data) / (first + second)) if first > 0 and second > 0 else 0.0
    boundary, end = int(first * share), int((first + second) * share)
    if not 0 < boundary < end:
        raise DataError(
            f"{len(data)} examples cannot be divided into {first} and {second}; give more examples, and numbers above 0"
        )
    return data.take(np.sort(drawn[:boundary])), data.take(np.sort(drawn[boundary:end]))
