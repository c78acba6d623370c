"""The two Fashion-MNIST classifiers of this example: a teacher that is right, and a student that is cheap."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

PIXEL_MEAN = 0.2860
PIXEL_STD = 0.3530


class Normalise(nn.Module):
    """Shift and scale [0, 1] pixels by the training set's mean and standard deviation.

    It is part of the model so that a client sends plain pixels and cannot get the constants wrong.
    """

    def forward(self, image: Tensor) -> Tensor:
        return (image - PIXEL_MEAN) / PIXEL_STD


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., Deep Residual Learning, 2015, figure 2)."""

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
    """ResNet-18 (He et al., 2015) with a stem for 28x28 images: a 3x3 convolution, no max-pooling.

    ``forward`` takes ``image``, FP32 [N, 1, 28, 28] in [0, 1], and returns logits, FP32 [N, num_classes].
    ``width`` is the number of channels of the first stage; the original has 64.
    """

    def __init__(self, width: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
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


class StudentCNN(nn.Module):
    """Three small convolutions and a linear head: about 17,600 parameters.

    ``forward`` takes ``image``, FP32 [N, 1, 28, 28] in [0, 1], and returns logits, FP32 [N, num_classes].
    """

    def __init__(self, channels: tuple[int, int, int] = (12, 24, 48), num_classes: int = 10) -> None:
        super().__init__()
        first, second, third = channels
        self.normalise = Normalise()
        self.features = nn.Sequential(
            *self._block(1, first), nn.MaxPool2d(2),
            *self._block(first, second), nn.MaxPool2d(2),
            *self._block(second, third), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(third * 3 * 3, num_classes)

    @staticmethod
    def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(self.normalise(image)).flatten(1))
        return logits


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(name: str) -> nn.Module:
    """A freshly initialised ``teacher`` or ``student``, drawn from torch's global random state.

    Raises ValueError for any other name.
    """
    if name == "teacher":
        return ResNet18()
    if name == "student":
        return StudentCNN()
    raise ValueError(f"there is no model {name!r} in this example; it has 'teacher' and 'student'")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors with every floating-point tensor in half precision, atomically."""
    halved = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for key, tensor in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(halved, partial)
    os.replace(partial, path)


def load_weights(name: str, path: Path) -> nn.Module:
    """The model ``name`` in FP32, in evaluation mode, with the weights that `save_weights` wrote to ``path``."""
    model = build(name)
    # Copying into the FP32 parameters of the model widens the halves.
    model.load_state_dict(load_file(path))
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """The share of ``images`` (FP32 [N, 1, 28, 28]) whose highest logit is at ``labels`` (int64 [N])."""
    model.eval()
    right = sum(
        int((model(images[at : at + batch_size]).argmax(1) == labels[at : at + batch_size]).sum())
        for at in range(0, len(labels), batch_size)
    )
    return right / len(labels)
