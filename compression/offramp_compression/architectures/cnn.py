"""Plain stacks of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from offramp_compression.architectures.normalise import Normalise


class PlainCNN(nn.Module):
    """Blocks of a 3x3 convolution, batch normalisation and ReLU; global average pooling; a linear head.

    `forward` takes `image`, FP32 [N, in_channels, H, W] in [0, 1], and returns logits, FP32 [N, num_classes].
    `sizes` are the channels of the blocks; the first `pools` of them end with 2x2 max-pooling, for which each side of
    an image must be at least 2**pools.
    """

    def __init__(
        self, sizes: Sequence[int] = (64, 128, 256, 512, 512), pools: int = 4, in_channels: int = 3,
        num_classes: int = 10, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(*convolution(inputs, outputs), *([nn.MaxPool2d(2)] if index < pools else []))
                for index, (inputs, outputs) in enumerate(zip([in_channels, *sizes[:-1]], sizes, strict=True))
            )
        )
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.blocks(self.normalise(image))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class VGG(nn.Module):
    """Stages of 3x3 convolutions of one width, each ending with 2x2 max-pooling; global average pooling; a linear head.

    After Simonyan & Zisserman, Very Deep Convolutional Networks (2014), with batch normalisation, and without the two
    large linear layers, which hold most of the original's weights. The defaults are the convolutions of its VGG-11.
    `forward` takes `image`, FP32 [N, in_channels, H, W] in [0, 1], each side at least 2**(number of stages - 1), and
    returns logits, FP32 [N, num_classes]. The last stage is not pooled, so that 28x28 images have something left.
    """

    def __init__(
        self, widths: Sequence[int] = (64, 128, 256, 512, 512), depths: Sequence[int] = (1, 1, 2, 2, 2),
        in_channels: int = 3, num_classes: int = 10, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:  # fmt: skip
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(f"expected one depth for each of the {len(widths)} widths, got {len(depths)}")
        self.normalise = Normalise(mean, std)
        stages = []
        for index, (inputs, outputs, depth) in enumerate(zip([in_channels, *widths[:-1]], widths, depths, strict=True)):
            layers = [*convolution(inputs, outputs)]
            for _ in range(depth - 1):
                layers.extend(convolution(outputs, outputs))
            last = index == len(widths) - 1
            stages.append(nn.Sequential(*layers, *([] if last else [nn.MaxPool2d(2)])))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stages(self.normalise(image))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class TinyCNN(nn.Module):
    """A few small convolutions, each with batch normalisation, ReLU and 2x2 max-pooling, and a linear head on all
    positions. `channels` are their widths; with (12, 24, 48) it has about 17,600 parameters for 28x28 images.

    `forward` takes `image`, FP32 [N, in_channels, image_size, image_size] in [0, 1], and returns logits, FP32
    [N, num_classes].
    """

    def __init__(
        self, channels: Sequence[int] = (16, 32), in_channels: int = 1, image_size: int = 28, num_classes: int = 10,
        mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:  # fmt: skip
        super().__init__()
        side = image_size // 2 ** len(channels)
        if side < 1:
            raise ValueError(f"images of {image_size} pixels a side cannot be halved {len(channels)} times")
        self.normalise = Normalise(mean, std)
        layers: list[nn.Module] = []
        for inputs, outputs in zip([in_channels, *channels[:-1]], channels, strict=True):
            layers.extend((*convolution(inputs, outputs), nn.MaxPool2d(2)))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * side * side, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(self.normalise(image)).flatten(1))
        return logits


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
