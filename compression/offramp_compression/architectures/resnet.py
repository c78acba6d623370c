"""ResNet-18 (He et al., Deep Residual Learning for Image Recognition, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from offramp_compression.architectures.normalise import Normalise


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (figure 2 of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.norm1(self.conv1(x)))
        return nn.functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two residual blocks, global average pooling and a linear head.

    `forward` takes `image`, FP32 [N, in_channels, H, W] in [0, 1], and returns logits, FP32 [N, num_classes].
    `width` is the number of channels of the first stage; the original has 64. The stem "imagenet" is the original's
    7x7 convolution and pooling; "small", for images of 28x28 or 32x32, is one 3x3 convolution that keeps the size.
    """

    def __init__(
        self, width: int = 64, stem: Literal["small", "imagenet"] = "small", in_channels: int = 3,
        num_classes: int = 10, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.stem = _stem(stem, in_channels, width)
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    ResidualBlock(inputs, outputs, stride=1 if outputs == width else 2),
                    ResidualBlock(outputs, outputs, stride=1),
                )
                for inputs, outputs in zip([width, *widths[:-1]], widths, strict=True)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stages(self.stem(self.normalise(image)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _stem(kind: str, inputs: int, outputs: int) -> nn.Sequential:
    if kind == "small":
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    if kind == "imagenet":
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
    raise ValueError(f'stem: expected "small" or "imagenet", got {kind!r}')
