"""A few labelled texts out of many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from offramp_common.errors import ConfigurationError

from offramp_compression.data.text import TextData


def some(texts: TextData, count: int, seed: int) -> TextData:
    """`count` of the texts, or all if there are fewer, drawn by `seed`."""
    return take(texts, _shuffled(texts, seed)[:count])


def apart(texts: TextData, count: int, seed: int) -> tuple[TextData | None, TextData]:
    """`count` of the texts, drawn by `seed`, and the others. Raises ConfigurationError if none would be left."""
    if count >= len(texts):
        raise ConfigurationError(f"{count} of {len(texts)} examples to fit to leave none to measure on; take fewer")
    order = _shuffled(texts, seed)
    return (take(texts, order[:count]) if count else None), take(texts, np.sort(order[count:]))


def take(texts: TextData, rows: NDArray[np.int64]) -> TextData:
    """The texts at `rows`, int64 [M], in that order."""
    return TextData(tuple(texts.texts[row] for row in rows), texts.labels[rows], texts.class_names)


def _shuffled(texts: TextData, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(len(texts))
