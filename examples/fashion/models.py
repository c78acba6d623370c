"""The two Fashion-MNIST classifiers of this example: a teacher that is right, and a student that is cheap.

Both take `image`, FP32 [N, 1, 28, 28] in [0, 1], and return logits, FP32 [N, 10]. They shift and scale the pixels by
themselves, by the training set's mean and standard deviation.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from offramp_compression.blueprint import Blueprint
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_IMAGES: dict[str, Any] = {"in_channels": 1, "num_classes": 10, "mean": [0.2860], "std": [0.3530]}

BLUEPRINTS = {
    "teacher": Blueprint("resnet18", {"width": 32, "stem": "small", **_IMAGES}),
    "student": Blueprint("tiny_cnn", {"channels": [12, 24, 48], "image_size": 28, **_IMAGES}),
}


def build(name: str) -> nn.Module:
    """A freshly initialised ``teacher`` or ``student``, drawn from torch's global random state.

    Raises ValueError for any other name.
    """
    if name not in BLUEPRINTS:
        raise ValueError(f"there is no model {name!r} in this example; it has 'teacher' and 'student'")
    return BLUEPRINTS[name].build()


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
