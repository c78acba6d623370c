"""A linear layer or a convolution as two thinner ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, replace_module


def apply_low_rank(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Replace layers by pairs of thinner ones with fresh weights; the edit "low_rank".

    `arguments` is {"ranks": {NAME: RANK}}. Raises ModelError for a layer that does not exist, that cannot be replaced,
    or for a rank that it cannot have.
    """
    for name, rank in arguments["ranks"].items():
        layer = get_module(module, name)
        refusal = why_not_low_rank(layer)
        if refusal:
            raise ModelError(f'layer "{name}" cannot have a low rank: {refusal}')
        if not isinstance(rank, int) or not 1 <= rank <= full_rank(layer):
            raise ModelError(f'layer "{name}" cannot have rank {rank}; expected 1 to {full_rank(layer)}')
        replace_module(module, name, _pair(layer, rank))
    return module


@torch.no_grad()
def fill_low_rank(pair: nn.Module, layer: nn.Module) -> None:
    """Give `pair`, made of `layer`, the weights that come closest to the layer's in the sum of squared differences.

    These are the truncated singular value decomposition (Eckart & Young, 1936), of a convolution that of its filters as
    rows, so that thinner filters are followed by a 1x1 convolution (Zhang et al., Accelerating Very Deep Convolutional
    Networks, 2015). The singular values are divided evenly between the two.
    """
    reduce, expand = pair.get_submodule("reduce"), pair.get_submodule("expand")
    left, values, right = torch.linalg.svd(_matrix(layer), full_matrices=False)
    rank = reduce.get_parameter("weight").shape[0]
    roots = values[:rank].sqrt()
    reduce.get_parameter("weight").copy_((roots[:, None] * right[:rank]).reshape(reduce.get_parameter("weight").shape))
    expand.get_parameter("weight").copy_((left[:, :rank] * roots).reshape(expand.get_parameter("weight").shape))
    if layer.bias is not None:
        expand.get_parameter("bias").copy_(layer.get_parameter("bias"))


def why_not_low_rank(layer: nn.Module) -> str:
    """Empty if `layer` can be replaced."""
    # Not a subclass, whose weights may be used by other means than a call.
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"it is a {type(layer).__name__}; expected Linear or Conv2d"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"it is a convolution with {layer.groups} groups; expected one"
    return ""


def full_rank(layer: nn.Module) -> int:
    return min(_shape(layer))


def highest_useful_rank(layer: nn.Module) -> int:
    """The highest rank at which two layers have fewer weights than one; 0 if there is none."""
    rows, columns = _shape(layer)
    return (rows * columns - 1) // (rows + columns)


@torch.no_grad()
def singular_values(layer: nn.Module) -> Tensor:
    """Of the layer's weights as a matrix, descending, [full rank]."""
    values: Tensor = torch.linalg.svdvals(_matrix(layer))
    return values


def _matrix(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").double().flatten(1)


def _shape(layer: nn.Module) -> tuple[int, int]:
    rows, columns = layer.get_parameter("weight").flatten(1).shape
    return rows, columns


def _pair(layer: nn.Module, rank: int) -> nn.Sequential:
    if isinstance(layer, nn.Linear):
        reduce: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        expand: nn.Module = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    else:
        assert isinstance(layer, nn.Conv2d)
        reduce = nn.Conv2d(
            layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
            layer.dilation, bias=False, padding_mode=layer.padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip
        expand = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    return nn.Sequential(OrderedDict(reduce=reduce, expand=expand))
