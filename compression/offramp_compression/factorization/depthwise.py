"""A convolution as one filter for each input channel, followed by a 1x1 convolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, replace_module


def apply_depthwise_separable(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Replace convolutions by depthwise-separable ones with fresh weights; the edit "depthwise_separable".

    `arguments` is {"multipliers": {NAME: FILTERS}}, with the number of filters for each input channel. Raises
    ModelError for a layer that does not exist, that cannot be replaced, or for a number of filters that it cannot have.
    """
    for name, filters in arguments["multipliers"].items():
        layer = get_module(module, name)
        refusal = why_not_separable(layer)
        if refusal:
            raise ModelError(f'layer "{name}" cannot be made depthwise-separable: {refusal}')
        assert isinstance(layer, nn.Conv2d)
        most = min(layer.out_channels, _positions(layer))
        if not isinstance(filters, int) or not 1 <= filters <= most:
            raise ModelError(f'layer "{name}" cannot have {filters} filters a channel; expected 1 to {most}')
        replace_module(module, name, _pair(layer, filters))
    return module


@torch.no_grad()
def fill_depthwise_separable(pair: nn.Module, layer: nn.Module) -> None:
    """Give `pair`, made of `layer`, the weights that come closest to the layer's in the sum of squared differences.

    Each input channel has a matrix of its own, outputs by positions, and its truncated singular value decomposition is
    the closest product (as in Guo et al., Network Decoupling, 2018).
    """
    depthwise, pointwise = pair.get_submodule("depthwise"), pair.get_submodule("pointwise")
    weight = layer.get_parameter("weight").double()
    outputs, inputs = weight.shape[:2]
    filters = depthwise.get_parameter("weight").shape[0] // inputs
    left, values, right = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    roots = values[:, :filters].sqrt()
    depthwise.get_parameter("weight").copy_(
        (roots[:, :, None] * right[:, :filters]).reshape(depthwise.get_parameter("weight").shape)
    )
    mixing = (left[:, :, :filters] * roots[:, None, :]).permute(1, 0, 2).reshape(outputs, inputs * filters, 1, 1)
    pointwise.get_parameter("weight").copy_(mixing)
    if layer.bias is not None:
        pointwise.get_parameter("bias").copy_(layer.get_parameter("bias"))


def why_not_separable(layer: nn.Module) -> str:
    """Empty if `layer` can be replaced."""
    # Not a subclass, whose weights may be used by other means than a call.
    if type(layer) is not nn.Conv2d:
        return f"it is a {type(layer).__name__}; expected Conv2d"
    if layer.groups > 1:
        return f"it is a convolution with {layer.groups} groups; expected one"
    if _positions(layer) == 1:
        return "its filters are 1x1, which is what a separable convolution ends with"
    return ""


def is_smaller(layer: nn.Conv2d, filters: int) -> bool:
    """Whether two layers have fewer weights than the one."""
    return filters * layer.in_channels * (_positions(layer) + layer.out_channels) < layer.weight.numel()


def _positions(layer: nn.Conv2d) -> int:
    return layer.kernel_size[0] * layer.kernel_size[1]


def _pair(layer: nn.Conv2d, filters: int) -> nn.Sequential:
    depthwise = nn.Conv2d(
        layer.in_channels, layer.in_channels * filters, layer.kernel_size, layer.stride,  # type: ignore[arg-type]
        layer.padding, layer.dilation, layer.in_channels, bias=False,  # type: ignore[arg-type]
        padding_mode=layer.padding_mode,
    )  # fmt: skip
    pointwise = nn.Conv2d(layer.in_channels * filters, layer.out_channels, 1, bias=layer.bias is not None)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))
