"""Pixels as a network wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Shift and scale [0, 1] pixels, FP32 [N, C, H, W], by the training set's `mean` and `std`: one number, or one a
    channel.

    It is part of the network so that a client sends plain pixels and cannot get the constants wrong.
    Raises ValueError if the two do not have the same length or a deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"expected as many means as deviations, got {list(mean)} and {list(std)}")
        if min(std) <= 0:
            raise ValueError(f"expected deviations above 0, got {list(std)}")
        # Not persistent: they are arguments of the architecture, not weights.
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std
