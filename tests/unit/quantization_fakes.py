"""Examples that a tiny network learns within a second, and such networks."""

from __future__ import annotations

import functools

import numpy as np
import torch
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from torch import Tensor, nn

CLASS_NAMES = ("top", "middle", "bottom")
SIDE = 12


def bands(rows: int = 150, channels: int = 2, seed: int = 0) -> Dataset:
    """Noise, uint8 [N, channels, 12, 12], with one of three horizontal bands brighter: the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows, dtype=np.int64) % 3
    pixels = random.integers(0, 120, (rows, channels, SIDE, SIDE))
    for row, label in enumerate(labels):
        pixels[row, :, 4 * label : 4 * label + 4] += 100
    return Dataset((pixels.astype(np.uint8),), labels, CLASS_NAMES)


@functools.cache
def trained(channels: int = 2) -> Network:
    """Two convolutions with batch norms, and a linear head, that know the bands. Shared: leave it as it is."""
    blueprint = Blueprint(
        "tiny_cnn", {"channels": [6, 8], "in_channels": channels, "image_size": SIDE, "num_classes": 3}
    )
    torch.manual_seed(0)
    return learn(network_of(blueprint.build(), blueprint), bands(channels=channels))


def network_of(module: nn.Module, blueprint: Blueprint | None = None, inputs: tuple[str, ...] = ("image",)) -> Network:
    where = blueprint or Blueprint("none")
    return Network(module.eval(), where, CLASS_NAMES, inputs, ("logits",), Provenance("train"))


def learn(network: Network, data: Dataset, steps: int = 40) -> Network:
    optimizer = torch.optim.Adam(network.module.parameters(), 0.02)
    inputs, labels = tensors(data), torch.tensor(data.labels)
    network.module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network.module(*inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.module.eval()
    return network


class Outlier(nn.Module):
    """Two layers, each knowing the bands from their three means; one of them also sees a number that dwarfs those.

    One scale for all that `sensitive` sees leaves nothing of the means: it cannot be quantised, `robust` can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.robust = nn.Linear(3, 3)
        self.sensitive = nn.Linear(4, 3)
        with torch.no_grad():
            self.robust.weight.copy_(torch.eye(3))
            self.robust.bias.zero_()
            self.sensitive.weight.copy_(torch.cat([10 * torch.eye(3), torch.zeros(3, 1)], 1))
            self.sensitive.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        means = image.reshape(-1, image.shape[1], 3, 4, SIDE).mean((1, 3, 4))
        huge = 1e5 + means[:, :1]
        logits: Tensor = self.sensitive(torch.cat([self.robust(means), huge], 1))
        return logits


def tokens(rows: int = 60, length: int = 9, seed: int = 0) -> Dataset:
    """Token ids and mask, [N, L]; the class is the third in which most tokens of a text lie. Lengths vary."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows, dtype=np.int64) % 3
    ids = 10 * labels[:, None] + random.integers(1, 10, (rows, length))
    mask = (np.arange(length) < random.integers(3, length + 1, (rows, 1))).astype(np.int64)
    return Dataset((ids * mask, mask), labels, CLASS_NAMES)
