"""Triton's classification extension: an output as the k best classes instead of all scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from offramp_common.text import quoted
from open_inference.tensor import BYTES, Array, Tensor, encode_bytes

from offramp_server.errors import InvalidRequest


def classify(scores: Tensor, count: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """The `count` highest scores of each item as BYTES elements "score:index" or "score:index:label".

    `scores` of any shape count as one row of classes for each item; the answer is [items, k] or, of a model without
    a batch dimension, [k], where k is `count` or the number of classes if that is less. Raises InvalidRequest for
    scores that are not numbers.
    """
    if scores.datatype in (BYTES, "BOOL"):
        raise InvalidRequest(f"output {quoted(scores.name)} is {scores.datatype}; classification needs numbers")
    items = scores.shape[0] if batched and scores.shape else 1
    rows = scores.numpy().reshape(items, -1) if items else np.empty((0, count))
    count = min(count, rows.shape[1])
    elements = [element for row in rows for element in _best(row, count, labels)]
    shape = (items, count) if batched else (count,)
    return Tensor(scores.name, BYTES, shape, encode_bytes(elements))


def _best(row: Array, count: int, labels: Sequence[str]) -> list[str]:
    # Stable and descending: of equal scores the lower index comes first; NaN is last.
    order = np.lexsort((np.arange(row.size), _descending(row)))[:count]
    return [_element(row[index].item(), int(index), labels) for index in order]


def _descending(row: Array) -> Array:
    # Complement and not negation, which has no answer for unsigned numbers or the lowest signed one.
    return ~row if row.dtype.kind in "iu" else -row


def _element(score: float | int, index: int, labels: Sequence[str]) -> str:
    shown = f"{score:f}" if isinstance(score, float) else str(score)
    return f"{shown}:{index}:{labels[index]}" if index < len(labels) else f"{shown}:{index}"
