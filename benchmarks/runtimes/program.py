"""An exported PyTorch program as every server of the benchmark runs it: eager, one compute thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

COMPUTE_THREADS = 1


class Program:
    """A `.pt2` file, loaded. Call it with float32 [N, ...]; it returns float32 [N, ...]."""

    def __init__(self, path: Path | str) -> None:
        torch.set_num_threads(COMPUTE_THREADS)
        self._module = torch.export.load(str(path)).module()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        # Arrays that are views of a network buffer are read-only, which from_numpy warns about.
        array = batch if batch.flags.writeable else batch.copy()
        with torch.inference_mode():
            result: NDArray[np.float32] = self._module(torch.from_numpy(array)).numpy()
        return result
