"""Unstructured pruning: single weights at zero, in a network that keeps its shape.

It is the base of sparse storage and of hardware that skips zeros; a dense engine computes with them as with any weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions

# Parameter name -> which of its elements stay, bool of its shape.
Masks: TypeAlias = Mapping[str, Tensor]
Scope: TypeAlias = Literal["global", "layerwise"]


@dataclass(frozen=True, slots=True)
class MaskedNetwork:
    network: Network
    masks: Masks


def prune_weights(
    network: Network, sparsity: float, scope: Scope = "global", keep: Sequence[str] = ()
) -> MaskedNetwork:
    """A copy of the network with the share ``sparsity`` of its weights at zero; see `magnitude_masks`."""
    masks = magnitude_masks(network.module, sparsity, scope, keep)
    provenance = Provenance(
        method="prune",
        settings={"structure": "weights", "sparsity": sparsity, "scope": scope, "keep": list(keep)},
        parents=(network.digest(),),
        versions=installed_versions(),
    )
    return MaskedNetwork(replace(network, module=masked(network.module, masks), provenance=provenance), masks)


def magnitude_masks(module: nn.Module, sparsity: float, scope: Scope = "global", keep: Sequence[str] = ()) -> Masks:
    """Masks of the weights of convolutions and linear layers without the share ``sparsity`` of smallest magnitude.

    "global" compares the weights of all layers with one another, "layerwise" takes the same share of each (Han et al.,
    Learning both Weights and Connections, 2015). Layers named in ``keep``, biases and norms stay whole.

    Raises ModelError for a share that is not in (0, 1), a layer that does not exist, or if no layer is left to prune.
    """
    if not 0 < sparsity < 1:
        raise ModelError(
            f"cannot set a share of {sparsity:g} of the weights to zero; expected more than 0, less than 1"
        )
    weights = _weights(module, keep)
    if scope == "layerwise":
        return {name: _largest(weight.abs(), sparsity) for name, weight in weights.items()}
    everything = _largest(torch.cat([weight.abs().flatten() for weight in weights.values()]), sparsity)
    parts = torch.split(everything, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for part, (name, weight) in zip(parts, weights.items(), strict=True)}


@torch.no_grad()
def masked(module: nn.Module, masks: Masks) -> nn.Module:
    """A copy with the weights at zero that the masks leave out."""
    copied = copy.deepcopy(module)
    for name, mask in masks.items():
        copied.get_parameter(name).mul_(mask)
    return copied


@contextmanager
def frozen_zeros(module: nn.Module, masks: Masks) -> Iterator[None]:
    """While inside, training leaves the weights that the masks leave out as they are.

    Their gradients are zero: so are then the momenta and, for weights at zero, the decay of every common optimiser.
    """
    hooks: list[RemovableHandle] = [
        module.get_parameter(name).register_hook(_keeping(mask))  # type: ignore[no-untyped-call]
        for name, mask in masks.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def sparsity(module: nn.Module) -> float:
    """The share of zeros among the weights of convolutions and linear layers."""
    layers = zeros_by_layer(module).values()
    return sum(each.zeros for each in layers) / sum(each.weights for each in layers)


@dataclass(frozen=True, slots=True)
class Zeros:
    """How many of a layer's weights are zero."""

    zeros: int
    weights: int


def zeros_by_layer(module: nn.Module) -> dict[str, Zeros]:
    """Of the convolutions and linear layers, by name. Raises ModelError if there is none."""
    return {
        name.removesuffix(".weight"): Zeros(int((weight == 0).sum()), weight.numel())
        for name, weight in _weights(module, ()).items()
    }


def _weights(module: nn.Module, keep: Sequence[str]) -> dict[str, Tensor]:
    for name in keep:
        get_module(module, name)
    found = {
        f"{name}.weight": layer.weight.detach()
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and name not in keep
    }
    if not found:
        raise ModelError("there is no convolution or linear layer to prune; keep fewer of them")
    return found


def _largest(magnitudes: Tensor, sparsity: float) -> Tensor:
    """True but for the share ``sparsity`` that is smallest; ties fall in the order of the elements."""
    mask = torch.ones(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    mask[magnitudes.flatten().argsort(stable=True)[: round(sparsity * magnitudes.numel())]] = False
    return mask.view_as(magnitudes)


def _keeping(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask.to(gradient.device)
