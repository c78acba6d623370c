"""Which examples make which batch, and how they are augmented: functions of a seed and a step alone.

Nothing here remembers what came before, so a run that was killed goes on with the very batches that it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import DataError

# Takes and returns the inputs of one batch. All its randomness comes from the generator.
Augment: TypeAlias = Callable[[tuple[Tensor, ...], Generator], tuple[Tensor, ...]]

_ORDER, _AUGMENT = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The model-ready `inputs`, the `labels` (int64 [B]) and where in the data set they came from (int64 [B])."""

    inputs: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor


class Batches:
    """An endless sequence of shuffled batches of `data`, one pass over it after the other.

    With `drop_last` every batch has `batch_size` examples and those left over wait for another pass, which shuffles
    anew. Raises DataError if there is not even one batch in `data`, or for a batch size or seed below its minimum.
    """

    def __init__(
        self, data: Dataset, batch_size: int, seed: int, augment: Augment | None = None, drop_last: bool = True
    ) -> None:
        if batch_size < 1:
            raise DataError(f"a batch of {batch_size} examples cannot be made; expected at least 1")
        if seed < 0:
            raise DataError(f"seed {seed} is negative; expected 0 or more")
        if len(data) < (batch_size if drop_last else 1):
            raise DataError(f"{len(data)} examples do not fill a batch of {batch_size}; choose a smaller batch size")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.steps_per_epoch = len(data) // batch_size if drop_last else -(-len(data) // batch_size)
        self._labels = torch.tensor(data.labels)
        self._shuffled: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        indices = self._order(epoch)[position * self.batch_size :][: self.batch_size]
        inputs = tensors(self.data, indices)
        if self.augment is not None:
            inputs = self.augment(inputs, _generator(self.seed, _AUGMENT, step))
        return Batch(inputs, self._labels[indices], indices)

    def _order(self, epoch: int) -> Tensor:
        if self._shuffled is None or self._shuffled[0] != epoch:
            order = torch.randperm(len(self.data), generator=_generator(self.seed, _ORDER, epoch))
            self._shuffled = (epoch, order)
        return self._shuffled[1]


def _generator(seed: int, stream: int, index: int) -> Generator:
    # torch's CPU generator looks at the low 32 bits of its seed only, so the three numbers are mixed into 32.
    (mixed,) = np.random.SeedSequence([seed, stream, index]).generate_state(1)
    return Generator().manual_seed(int(mixed))
