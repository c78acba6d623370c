"""Export the benchmark's models: `python -m benchmarks.runtimes.export_models DIRECTORY`.

Writes NAME.pt2 and NAME.npz (sixteen inputs and the outputs that eager batch-1 inference gives) for each model.
Weights are random but seeded: time per call does not depend on their values.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

SEED = 20261122
SAMPLES = 16
MAX_BATCH = 16
CLASSES = 10


class Identity(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input.clone()


def conv_block(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


def student() -> nn.Module:
    """Build a plain CNN of five blocks for 32x32x3 images, 2.15 M parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((64, 1), (128, 2), (256, 2), (256, 2), (512, 2)):
        layers += conv_block(channels, width, stride)
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        first = conv_block(channels_in, channels_out, stride)
        second = conv_block(channels_out, channels_out, 1)[:-1]
        self.residual = nn.Sequential(*first, *second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def teacher() -> nn.Module:
    """Build ResNet-18 (He et al., 2016) with the 3x3 stem for 32x32x3 images, 11.2 M parameters."""
    layers = conv_block(3, 64, 1)
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(channels, width, stride), BasicBlock(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def export(name: str, module: nn.Module, item_shape: tuple[int, ...], directory: Path) -> None:
    module.eval()
    inputs = torch.randn(SAMPLES, *item_shape)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(module, (inputs,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, directory / f"{name}.pt2")
    with torch.inference_mode():
        outputs = torch.cat([module(item) for item in torch.split(inputs, 1)])
    np.savez(directory / f"{name}.npz", inputs=inputs.numpy(), outputs=outputs.numpy())


def main() -> int:
    directory = Path(sys.argv[1])
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    export("identity", Identity(), (64,), directory)
    export("student", student(), (3, 32, 32), directory)
    export("teacher", teacher(), (3, 32, 32), directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
