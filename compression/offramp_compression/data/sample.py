"""A few examples of many."""

from __future__ import annotations

import numpy as np

from offramp_compression.data.dataset import Dataset


def sample(data: Dataset, count: int, seed: int = 0) -> Dataset:
    """`count` examples of `data` drawn by `seed` without replacement, in their order there; all if there are fewer."""
    if count >= len(data):
        return data
    return data.take(np.sort(np.random.default_rng(seed).choice(len(data), count, replace=False)))
