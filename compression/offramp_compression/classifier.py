"""A network's last layer: which one it is, and another in its place for other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp_common.text import quoted
from torch import nn

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, replace_module


def find_classifier(module: nn.Module, classes: int) -> str:
    """The name of the last linear layer or convolution with so many outputs. Raises ModelError if there is none."""
    fitting: list[str] = [name for name, layer in module.named_modules() if _outputs(layer) == classes and name]
    if not fitting:
        raise ModelError(f"no linear layer or convolution of the network has {classes} outputs; name its classifier")
    return fitting[-1]


def replace_classifier(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The edit "head": have the linear layer or convolution `module` return `classes` logits, from fresh weights."""
    name, classes = arguments["module"], arguments["classes"]
    replace_module(module, name, _with_outputs(get_module(module, name), name, classes))
    return module


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


def _with_outputs(layer: nn.Module, name: str, classes: int) -> nn.Module:
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, classes, bias)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        same: dict[str, Any] = {of: getattr(layer, of) for of in ("kernel_size", "stride", "padding", "dilation")}
        return nn.Conv2d(layer.in_channels, classes, bias=bias, **same)
    raise ModelError(
        f"module {quoted(name)} is a {type(layer).__name__} and cannot be made to return other classes; "
        "name a linear layer or a convolution"
    )
