"""Small networks with places for exits, and data for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.dataset import Dataset
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from torch import Tensor

CLASSES = ("a", "b", "c")
_BERT: dict[str, Any] = {"vocabulary": 40, "width": 16, "layers": 4, "heads": 4, "inner": 32, "positions": 32}


def network(blueprint: Blueprint, inputs: tuple[str, ...], seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(blueprint.build().eval(), blueprint, CLASSES, inputs, ("logits",), Provenance("test"))


def resnet() -> Network:
    """For FP32 [N, 1, 12, 12]. Its batch norms have statistics that matter."""
    blueprint = Blueprint("resnet18", {"width": 8, "in_channels": 1, "num_classes": len(CLASSES)})
    made = network(blueprint, ("image",))
    generator = torch.Generator().manual_seed(3)
    for name, buffer in made.module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 5)
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return made


def encoder() -> Network:
    """For token ids and a mask, int64 [N, L]; four layers."""
    return network(Blueprint("minilm", {**_BERT, "num_classes": len(CLASSES)}), ("input_ids", "attention_mask"))


def images(count: int = 5) -> tuple[Tensor]:
    return (torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(count)),)


def tokens(count: int = 5, length: int = 9) -> tuple[Tensor, Tensor]:
    """Each row but the first ends in some padding."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1, 40, (count, length), generator=generator)
    lengths = torch.randint(1, length, (count, 1), generator=generator)
    lengths[0] = length
    return ids, (torch.arange(length) < lengths).to(torch.int64)


def image_data(count: int = 60) -> Dataset:
    """Classes that differ in brightness."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % len(CLASSES)
    pixels = random.integers(0, 60, (count, 1, 12, 12)) + 90 * labels[:, None, None, None]
    return Dataset((pixels.astype(np.uint8),), labels.astype(np.int64), CLASSES)


def text_data(count: int = 30) -> Dataset:
    ids, mask = tokens(count)
    labels = (ids[:, 0] % len(CLASSES)).numpy()
    return Dataset((ids.numpy(), mask.numpy()), labels.astype(np.int64), CLASSES)
