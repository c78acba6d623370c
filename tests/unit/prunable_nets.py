"""Small networks with what makes pruning hard, each with random weights and batch statistics."""

from __future__ import annotations

import torch
from offramp_compression.blueprint import Blueprint
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from torch import Tensor, nn

# As `data_sets.images` has them.
CLASSES = ("class 0", "class 1", "class 2")


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, a flattened feature map and a linear layer. Takes FP32 [N, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.hidden = nn.Linear(24 * 16, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.depthwise(torch.relu(self.grouped(x)))
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        # An activation that is not 0 at 0.
        logits: Tensor = self.head(torch.sigmoid(self.hidden(x)))
        return logits


class Joined(nn.Module):
    """Two branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 8, 3, padding=1)
        self.right = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.after = nn.Conv2d(20, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))
        logits: Tensor = self.head(torch.relu(self.after(x)).mean((2, 3)))
        return logits


class Stubborn(nn.Module):
    """Layers that cannot be pruned, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.Conv2d(1, 8, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.sized = nn.Conv2d(8, 8, 3, padding=1)
        self.scaled = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.ones(8))
        self.coupled = nn.Conv2d(8, 8, 3, padding=1)
        self.multiplied = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.free = nn.Conv2d(16, 8, 1)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.group_norm(self.normed(x)))
        x = self.sized(x).view(-1, 8, 64).view(-1, 8, 8, 8)
        x = self.scaled(x).mul(self.scale[None, :, None, None])
        x = self.free(self.multiplied(self.coupled(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def network(architecture: str, seed: int = 0, **arguments: object) -> Network:
    """Of a class above or of an architecture of the package, in evaluation mode."""
    known = {"Grouped", "Joined", "Stubborn"}
    blueprint = Blueprint(f"prunable_nets:{architecture}" if architecture in known else architecture, arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = blueprint.build()
        _stir(module)
    return Network(module.eval(), blueprint, CLASSES, ("image",), ("logits",), Provenance("train"))


def resnet(seed: int = 0) -> Network:
    return network("resnet18", seed, width=8, in_channels=1, num_classes=3)


@torch.no_grad()
def _stir(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.3)
            layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
