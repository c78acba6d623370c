"""Small networks to export, and rows to ask them."""

from __future__ import annotations

import torch
from offramp_compression.blueprint import Blueprint
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from torch import Tensor, nn

CLASS_NAMES = ("cat", "dog", "owl")
SIDE = 12
PROVENANCE = Provenance("train", {"epochs": 3}, 7, "d1g35t", ("parent",), {"torch": "2"}, {"accuracy": 0.75})


def tiny_network(seed: int = 0) -> Network:
    """FP32 [N, 1, 12, 12] to logits of three classes."""
    blueprint = Blueprint("tiny_cnn", {"channels": [4, 8], "image_size": SIDE, "num_classes": 3})
    torch.manual_seed(seed)
    return network_of(blueprint.build(), blueprint)


def network_of(
    module: nn.Module,
    blueprint: Blueprint | None = None,
    inputs: tuple[str, ...] = ("image",),
    outputs: tuple[str, ...] = ("logits",),
) -> Network:
    return Network(module.eval(), blueprint or Blueprint("none"), CLASS_NAMES, inputs, outputs, PROVENANCE)


def images(rows: int = 20, seed: int = 1) -> Tensor:
    return torch.rand((rows, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
