"""A calibration set in pieces that fit into memory together with everything that is observed of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from offramp_compression.data.dataset import Dataset, tensors

_ROWS = 32


def batches(data: Dataset, rows: int = _ROWS) -> Iterator[tuple[Tensor, ...]]:
    for start in range(0, len(data), rows):
        yield tensors(data, np.arange(start, min(start + rows, len(data))))
