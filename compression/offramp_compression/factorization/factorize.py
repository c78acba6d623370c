"""Choose which layers of a network to factorise and how far, and do it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from offramp_common.toml_schema import Rule, between
from torch import Tensor, nn

from offramp_compression.blueprint import Edit
from offramp_compression.errors import ModelError
from offramp_compression.factorization.depthwise import (
    apply_depthwise_separable,
    fill_depthwise_separable,
    is_smaller,
    why_not_separable,
)
from offramp_compression.factorization.low_rank import (
    apply_low_rank,
    fill_low_rank,
    highest_useful_rank,
    singular_values,
    why_not_low_rank,
)
from offramp_compression.modules import get_module
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions

_KINDS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, slots=True)
class Factorization:
    method: Literal["low-rank", "depthwise-separable"] = "low-rank"
    # Of "low-rank": the share of a layer's squared singular values that its rank must hold.
    energy: Annotated[float, Rule("a number above 0, at most 1", lambda value: 0 < value <= 1)] = 0.9
    # Of "depthwise-separable": filters for each input channel.
    filters: Annotated[int, between(1)] = 1
    # The layers to factorise; none: all that gain from it.
    only: tuple[str, ...] = ()
    # Layers that stay as they are.
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Factor:
    """What became of one layer. ``error``: the norm of the weights' difference over that of the weights."""

    layer: str
    # The rank, or the filters for each channel.
    size: int
    before: int
    after: int
    error: float


@dataclass(frozen=True, slots=True)
class Factorized:
    """``kept`` is layer name -> why it stays as it is."""

    network: Network
    factors: tuple[Factor, ...]
    kept: Mapping[str, str]


def factorize(network: Network, settings: Factorization) -> Factorized:
    """The network with layers as products of smaller ones, not yet fine-tuned (see `recovery.recover`).

    Raises ModelError for a layer of `only` or `keep` that does not exist, for one of `only` that cannot be factorised,
    or if no layer would get smaller.
    """
    method = _METHODS[settings.method]
    sizes, kept = _sizes(network.module, settings, method)
    if not sizes:
        raise ModelError("no layer would get smaller: " + "; ".join(f"{name}: {why}" for name, why in kept.items()))
    arguments = {method.argument: sizes}
    module = method.apply(copy.deepcopy(network.module), arguments).train(network.module.training)
    for name in sizes:
        method.fill(get_module(module, name), get_module(network.module, name))
    provenance = Provenance(
        "factorize",
        settings={**asdict(settings), "only": list(settings.only), "keep": list(settings.keep)},
        parents=(network.digest(),),
        versions=installed_versions(),
    )
    child = replace(
        network,
        module=module,
        provenance=provenance,
        blueprint=network.blueprint.with_edit(Edit(method.edit, arguments)),
    )
    return Factorized(child, tuple(_factor(network.module, module, name, size) for name, size in sizes.items()), kept)


@dataclass(frozen=True, slots=True)
class _Method:
    edit: str
    argument: str
    apply: Callable[[nn.Module, Mapping[str, Any]], nn.Module]
    fill: Callable[[nn.Module, nn.Module], None]
    refusal: Callable[[nn.Module], str]
    # None: the layer would not get smaller.
    size: Callable[[nn.Module, Factorization], int | None]


def _sizes(module: nn.Module, settings: Factorization, method: _Method) -> tuple[dict[str, int], dict[str, str]]:
    _check_names(module, settings, method)
    sizes, kept = {}, {}
    for name, layer in module.named_modules():
        if not isinstance(layer, _KINDS) or (settings.only and name not in settings.only):
            continue
        refusal = "it was asked to be kept" if name in settings.keep else method.refusal(layer)
        size = None if refusal else method.size(layer, settings)
        if size is None:
            kept[name] = refusal or "it would not get smaller"
        else:
            sizes[name] = size
    return sizes, kept


def _check_names(module: nn.Module, settings: Factorization, method: _Method) -> None:
    for name in settings.keep:
        get_module(module, name)
    for name in settings.only:
        refusal = method.refusal(get_module(module, name))
        if refusal:
            raise ModelError(f'layer "{name}" cannot be factorised: {refusal}')


def _rank(layer: nn.Module, settings: Factorization) -> int | None:
    energy = singular_values(layer).square().cumsum(0)
    rank = 1 + int(torch.searchsorted(energy, settings.energy * energy[-1]).clamp(max=len(energy) - 1))
    return rank if rank <= highest_useful_rank(layer) else None


def _filters(layer: nn.Module, settings: Factorization) -> int | None:
    assert isinstance(layer, nn.Conv2d)
    return settings.filters if is_smaller(layer, settings.filters) else None


@torch.no_grad()
def _factor(before: nn.Module, after: nn.Module, name: str, size: int) -> Factor:
    layer, pair = get_module(before, name), get_module(after, name)
    weight = layer.get_parameter("weight")
    error = (_product(pair, weight) - weight).norm() / weight.norm().clamp(min=1e-12)
    return Factor(name, size, _count(layer), _count(pair), float(error))


def _product(pair: nn.Module, like: Tensor) -> Tensor:
    """The weights of the one layer that does what the pair does."""
    first, second = (child.get_parameter("weight") for child in pair.children())
    if len(first) == second.shape[1] and first.shape[1:] == like.shape[1:]:
        return (second.flatten(1) @ first.flatten(1)).reshape(like.shape)
    inputs = like.shape[1]
    mixing = second.flatten(1).reshape(len(like), inputs, -1)
    return torch.einsum("oif,ifhw->oihw", mixing, first.reshape(inputs, -1, *like.shape[2:]))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


_METHODS: Mapping[str, _Method] = {
    "low-rank": _Method("low_rank", "ranks", apply_low_rank, fill_low_rank, why_not_low_rank, _rank),
    "depthwise-separable": _Method(
        "depthwise_separable", "multipliers", apply_depthwise_separable, fill_depthwise_separable,
        why_not_separable, _filters,
    ),
}  # fmt: skip
