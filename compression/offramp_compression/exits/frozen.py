"""Train the heads of a frozen trunk without running the trunk again and again.

What a head's linear layer sees of an example never changes while the trunk is frozen and nothing is augmented: it is
computed once for the whole data set, and the linear layers learn from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.exits.network import MultiExit
from offramp_compression.exits.objectives import JointExits
from offramp_compression.training.history import History
from offramp_compression.training.settings import TrainingSettings
from offramp_compression.training.trainer import fit

_BATCH = 256


def fit_heads(
    module: MultiExit,
    train: Batches,
    settings: TrainingSettings,
    objective: JointExits,
    **watching: Any,
) -> History:
    """`training.fit` for a frozen trunk, at the cost of one pass through it.

    The heads end as after `fit` with the same arguments, but for rounding, as batches and steps are the same. It takes
    `fit`'s keywords but `validate`: the trunk's answer, which validation watches, cannot change. Needs N * (the heads'
    features + classes) floats of memory. Raises ModelError if the objective trains the trunk or batches are augmented.
    """
    if not objective.freeze_trunk:
        raise ModelError("the objective trains the trunk; heads alone are trained with freeze_trunk=True")
    if train.augment is not None:
        raise ModelError("augmented examples have to go through the trunk every time; use fit, or do not augment")
    drop_last = train.steps_per_epoch * train.batch_size <= len(train.data)
    pooled = Batches(pool(module, train.data), train.batch_size, train.seed, drop_last=drop_last)
    module.eval()
    return fit(_Heads(module), pooled, settings, objective, **watching)


def pool(module: MultiExit, data: Dataset) -> Dataset:
    """What the heads' linear layers see of `data`: float32 [N, features] for each, then the trunk's logits."""
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        batches = [_pooled(module, data, start, device) for start in range(0, len(data), _BATCH)]
    finally:
        module.train(was_training)
    return Dataset(
        tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True)), data.labels, data.class_names
    )


class _Heads(nn.Module):
    """The linear layers of a multi-exit network; takes what `pool` returns, and returns what the network would."""

    def __init__(self, module: MultiExit) -> None:
        super().__init__()
        self.heads = module.heads

    def forward(self, *pooled: Tensor) -> tuple[Tensor, ...]:
        return (*_linear(self.heads, pooled[:-1]), pooled[-1])


def _linear(heads: nn.ModuleList, pooled: Sequence[Tensor]) -> list[Tensor]:
    return [head.linear(features) for head, features in zip(heads, pooled, strict=True)]  # type: ignore[operator]


@torch.inference_mode()
def _pooled(module: MultiExit, data: Dataset, start: int, device: torch.device) -> list[Any]:
    rows = np.arange(start, min(start + _BATCH, len(data)))
    answers = module.pooled(*(tensor.to(device) for tensor in tensors(data, rows)))
    return [answer.float().cpu().numpy() for answer in answers]
