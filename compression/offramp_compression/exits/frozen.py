"""Train the heads of a frozen trunk without running the trunk again and again.

What a head's linear layer sees of an example never changes while the trunk is frozen and nothing is augmented: it is
computed once for the whole data set, and the linear layers learn from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp_compression.data.augment import trim_padding
from offramp_compression.data.batches import Augment, Batches
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.exits.network import MultiExit

_BATCH = 128


class Heads(nn.Module):
    """The linear layers of a multi-exit network, shared with it.

    They take what `pool` makes of examples and return what the network would return for those, without its trunk.
    """

    def __init__(self, module: MultiExit) -> None:
        super().__init__()
        self.heads = module.heads

    def forward(self, *pooled: Tensor) -> tuple[Tensor, ...]:
        return (*_linear(self.heads, pooled[:-1]), pooled[-1])


def never_varies(augment: Augment | None) -> bool:
    """Whether a network sees the same of an example every time."""
    return augment is None or augment is trim_padding


def pooled_batches(module: MultiExit, batches: Batches) -> Batches:
    """The same batches of the same examples, as `pool` makes them. Heads learn from these what they would learn through
    the frozen trunk, but for rounding.

    Raises ModelError if the examples are augmented.
    """
    if not never_varies(batches.augment):
        raise ModelError("augmented examples have to go through the trunk every time; train with the trunk in place")
    drop_last = batches.steps_per_epoch * batches.batch_size <= len(batches.data)
    pooled = pool(module, batches.data, trim=batches.augment is trim_padding)
    return Batches(pooled, batches.batch_size, batches.seed, drop_last=drop_last)


def pool(module: MultiExit, data: Dataset, *, trim: bool = False) -> Dataset:
    """What the heads' linear layers see of `data`: float32 [N, features] for each, then the trunk's logits.

    With `trim`, texts of similar length are computed together and their padding is left out.
    """
    training = module.training
    module.eval()
    order = np.argsort(data.inputs[1].sum(1), kind="stable") if trim else np.arange(len(data))
    try:
        parts = [_pooled(module, data, order[start : start + _BATCH], trim) for start in range(0, len(data), _BATCH)]
    finally:
        module.train(training)
    places = np.argsort(order)
    inputs = tuple(np.concatenate(arrays)[places] for arrays in zip(*parts, strict=True))
    return Dataset(inputs, data.labels, data.class_names)


def _linear(heads: nn.ModuleList, pooled: Sequence[Tensor]) -> list[Tensor]:
    return [head.linear(features) for head, features in zip(heads, pooled, strict=True)]  # type: ignore[operator]


@torch.inference_mode()
def _pooled(module: MultiExit, data: Dataset, rows: NDArray[np.int64], trim: bool) -> list[Any]:
    device = next(module.parameters()).device
    inputs = tensors(data, rows)
    if trim:
        inputs = trim_padding(inputs, torch.Generator())
    answers = module.pooled(*(tensor.to(device) for tensor in inputs))
    return [answer.float().cpu().numpy() for answer in answers]
