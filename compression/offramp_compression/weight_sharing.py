"""Weights that share few values: each layer has a codebook, and its weights are positions in it.

The trained quantisation of Han et al., Deep Compression (2015). The network looks its weights up whenever it runs, so
nothing gets faster; its file holds codebooks and packed positions, and gets smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
from offramp_common.toml_schema import between
from torch import Tensor, nn

from offramp_compression.blueprint import Edit
from offramp_compression.codebooks import SharedLayer, apply_shared_weights, why_not_shared
from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, replace_module
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions

EDIT = "shared_weights"
# Below it, zeros are chance and not pruning.
_SPARSE = 0.1
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class WeightSharing:
    # Of a position: a layer has 2^bits values.
    bits: Annotated[int, between(1, 8)] = 4
    # Layers that stay as they are.
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Saving:
    """What became of one layer: bytes of its weights, and the norm of their difference over that of the weights.

    ``values`` is how many different ones the weights have now.
    """

    layer: str
    weights: int
    values: int
    bytes_before: int
    bytes_after: int
    error: float

    @property
    def bits_per_weight(self) -> float:
        """With the codebook."""
        return 8 * self.bytes_after / self.weights


@dataclass(frozen=True, slots=True)
class Shared:
    """``kept`` is layer name -> why it stays as it is."""

    network: Network
    layers: tuple[Saving, ...]
    kept: Mapping[str, str]


def share_weights(network: Network, settings: WeightSharing) -> Shared:
    """The network with a codebook for each convolution and linear layer, not yet fine-tuned (see `recovery.recover`).

    Training it moves the shared values: the gradient of one is the sum of those of its weights. In a layer that was
    pruned, zeros stay zero. Raises ModelError for a layer of `keep` that does not exist, or if no layer would get
    smaller.
    """
    layers, kept = _chosen(network.module, settings)
    if not layers:
        raise ModelError("no layer would get smaller: " + "; ".join(f"{name}: {why}" for name, why in kept.items()))
    arguments = {"layers": layers}
    module = apply_shared_weights(copy.deepcopy(network.module), arguments)
    for name in layers:
        _shared(module, name).fill(get_module(network.module, name).get_parameter("weight"))
    provenance = Provenance(
        "share-weights",
        settings={**asdict(settings), "keep": list(settings.keep)},
        parents=(network.digest(),),
        versions=installed_versions(),
    )
    child = replace(
        network, module=module, blueprint=network.blueprint.with_edit(Edit(EDIT, arguments)), provenance=provenance
    )
    return Shared(child, tuple(_told(network.module, module, name, layers[name]) for name in layers), kept)


def expanded(network: Network) -> Network:
    """The network with its weights written out, as engines want them; it answers the same. One without is returned."""
    edits = tuple(edit for edit in network.blueprint.edits if edit.kind != EDIT)
    if len(edits) == len(network.blueprint.edits):
        return network
    module = copy.deepcopy(network.module)
    for name, layer in network.module.named_modules():
        if isinstance(layer, SharedLayer):
            replace_module(module, name, _written_out(layer))
    return replace(network, module=module, blueprint=replace(network.blueprint, edits=edits))


def _written_out(layer: SharedLayer) -> nn.Module:
    plain = copy.deepcopy(layer.layer)
    plain.register_parameter("weight", nn.Parameter(layer.weight.detach().clone()))
    return plain


def _chosen(module: nn.Module, settings: WeightSharing) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    for name in settings.keep:
        get_module(module, name)
    layers: dict[str, dict[str, Any]] = {}
    kept = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, (SharedLayer, nn.modules.conv._ConvNd, nn.Linear)):
            continue
        reason = _reason_to_keep(name, layer, settings)
        if reason:
            kept[name] = reason
        else:
            layers[name] = {"bits": settings.bits, "zero": _is_sparse(layer.get_parameter("weight"))}
    return layers, kept


def _reason_to_keep(name: str, layer: nn.Module, settings: WeightSharing) -> str:
    if name in settings.keep:
        return "it was asked to be kept"
    refusal = why_not_shared(layer)
    if refusal:
        return refusal
    weights = layer.get_parameter("weight").numel()
    return "" if _bytes(weights, settings.bits) < _FLOAT_BYTES * weights else "its codebook would be larger than itself"


def _is_sparse(weight: Tensor) -> bool:
    return float((weight == 0).float().mean()) >= _SPARSE


def _bytes(weights: int, bits: int) -> int:
    return _FLOAT_BYTES * (1 << bits) + -(-weights * bits // 8)


def _shared(module: nn.Module, name: str) -> SharedLayer:
    layer = get_module(module, name)
    assert isinstance(layer, SharedLayer)
    return layer


@torch.no_grad()
def _told(before: nn.Module, after: nn.Module, name: str, wanted: Mapping[str, Any]) -> Saving:
    weight, shared = get_module(before, name).get_parameter("weight"), _shared(after, name).weight
    error = float((shared - weight).norm() / weight.norm().clamp(min=1e-12))
    size = _bytes(weight.numel(), wanted["bits"]) - _FLOAT_BYTES * int(wanted["zero"])
    return Saving(name, weight.numel(), int(torch.unique(shared).numel()), _FLOAT_BYTES * weight.numel(), size, error)
