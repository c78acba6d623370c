"""The tensors of a layer by the channels they belong to: cut out, or set to zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from offramp_compression.modules import get_module
from offramp_compression.pruning.channels import Kept, Mask, Side
from offramp_compression.resize import resize, widths

# For every tensor of a layer: the side to which each of its dimensions belongs; those left out belong to neither.
Axes = Mapping[str, tuple[Side, ...]]
_WEIGHTS: Axes = MappingProxyType({"weight": ("outputs", "inputs"), "bias": ("outputs",)})
_ONE_EACH: Axes = MappingProxyType(
    {"weight": ("outputs",), "bias": ("outputs",), "running_mean": ("outputs",), "running_var": ("outputs",)}
)


def axes(layer: nn.Module) -> Axes:
    """Nothing for a layer without channels, or with channels that cannot be cut."""
    if not widths(layer):
        return {}
    one_each = isinstance(layer, nn.modules.batchnorm._BatchNorm) or is_depthwise(layer)
    return _ONE_EACH if one_each else _WEIGHTS


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel is made of one input channel of its own."""
    sizes = widths(layer)
    return sizes.get("groups", 1) > 1 and sizes["groups"] == sizes["inputs"] == sizes["outputs"]


def shrink(module: nn.Module, keep: Kept) -> tuple[nn.Module, dict[str, Any]]:
    """A narrower copy with the weights of the channels that stay, and the arguments of the "resize" that it takes."""
    arguments = {"modules": {name: _widths(get_module(module, name), masks) for name, masks in keep.items()}}
    sliced = {
        f"{name}.{key}": tensor
        for name, masks in keep.items()
        for key, tensor in _sliced(get_module(module, name), masks).items()
    }
    smaller = resize(copy.deepcopy(module), arguments)
    smaller.load_state_dict(module.state_dict() | sliced)
    return smaller.train(module.training), arguments


@torch.no_grad()
def silence(module: nn.Module, keep: Kept) -> nn.Module:
    """A copy of the same shape whose channels that do not stay are zero where they are made and where they are read."""
    silent = copy.deepcopy(module)
    for name, masks in keep.items():
        layer = get_module(silent, name)
        for key, parameter in layer.named_parameters(recurse=False):
            for dimension, side in enumerate(axes(layer)[key]):
                if side in masks:
                    gone = ~_along(masks[side], parameter, dimension)
                    parameter.index_fill_(dimension, gone.nonzero().flatten(), 0.0)
    return silent


def _widths(layer: nn.Module, masks: Mapping[Side, Mask]) -> dict[str, int]:
    if is_depthwise(layer):
        left = int(masks["outputs"].sum())
        return {"inputs": left, "outputs": left, "groups": left}
    return {side: int(mask.sum()) for side, mask in masks.items()}


def _sliced(layer: nn.Module, masks: Mapping[Side, Mask]) -> dict[str, Tensor]:
    tensors = layer.state_dict()
    for key, sides in axes(layer).items():
        for dimension, side in enumerate(sides):
            if key in tensors and side in masks:
                stays = _along(masks[side], tensors[key], dimension)
                tensors[key] = tensors[key].index_select(dimension, stays.nonzero().flatten())
    return tensors


def _along(mask: Mask, tensor: Tensor, dimension: int) -> Tensor:
    # A convolution with groups has weights for the inputs of one group, and the same inputs go in each of them.
    return torch.from_numpy(mask).reshape(-1, tensor.shape[dimension])[0].to(tensor.device)
