"""How much a network would miss each unit of a group of channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp_compression.data.batches import Batches
from offramp_compression.modules import get_module
from offramp_compression.pruning.channels import ELSEWHERE, ChannelGroup, Indices, Member
from offramp_compression.pruning.slicing import axes

Scores: TypeAlias = NDArray[np.float64]
# Group name -> its units, int64 [size], the least important first.
Ranking: TypeAlias = Mapping[str, Indices]


def by_magnitude(module: nn.Module, groups: Sequence[ChannelGroup]) -> Ranking:
    """Rank units by the L2 norm of their weights, summed over the layers of the group.

    Each layer's norms are divided by their mean, as layers differ in scale: the group importance of Fang et al.,
    DepGraph (2023), after Li et al., Pruning Filters for Efficient ConvNets (2017).
    """
    return {group.name: np.argsort(_group_magnitude(module, group), kind="stable") for group in groups}


def by_taylor(module: nn.Module, groups: Sequence[ChannelGroup], batches: Batches, steps: int) -> Ranking:
    """Rank units by how much the loss would change without them, to first order.

    The squared sum of weight times gradient over what makes the unit, summed over ``steps`` batches (Molchanov et
    al., Importance Estimation for Neural Network Pruning, 2019). The module is left as it is.
    """
    probe = copy.deepcopy(module).eval().requires_grad_(True)
    totals = {group.name: np.zeros(group.size) for group in groups}
    for step in range(steps):
        batch = batches.batch(step)
        probe.zero_grad()
        with torch.enable_grad():
            nn.functional.cross_entropy(_last(probe(*batch.inputs)), batch.labels).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            totals[group.name] += _taylor(probe, group) ** 2
    return {name: np.argsort(scores, kind="stable") for name, scores in totals.items()}


def least(ranking: Ranking, stay: Mapping[str, int]) -> dict[str, Indices]:
    """The units to take out so that as many of each group are left as ``stay`` says."""
    return {name: ranking[name][: len(ranking[name]) - count] for name, count in stay.items()}


def _group_magnitude(module: nn.Module, group: ChannelGroup) -> Scores:
    norms = [
        np.sqrt(_per_unit(get_module(module, member.module), "weight", member, group.size, Tensor.square))
        for member in group.members
    ]
    scaled = [norm / norm.mean() for norm in norms if norm.any()]
    total: Scores = np.sum([np.zeros(group.size), *scaled], axis=0)
    return total


def _taylor(module: nn.Module, group: ChannelGroup) -> Scores:
    makers = [(each, get_module(module, each.module)) for each in group.members if each.side == "outputs"]
    # A batch normalisation is the gate through which everything that makes a channel passes.
    gates = [each for each in makers if isinstance(each[1], nn.modules.batchnorm._BatchNorm)] or makers
    parts = [
        _per_unit(layer, name, member, group.size, _weight_times_gradient)
        for member, layer in gates
        for name in ("weight", "bias")
    ]
    total: Scores = np.sum(parts, axis=0)
    return total


def _weight_times_gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight * weight.grad


@torch.no_grad()
def _per_unit(layer: nn.Module, name: str, member: Member, size: int, value: Callable[[Tensor], Tensor]) -> Scores:
    """The sum of ``value`` of the parameter ``name`` over what belongs to each unit, float64 [size]; 0 without one."""
    total = np.zeros(size)
    parameter = getattr(layer, name, None)
    if parameter is None:
        return total
    dimension = axes(layer)[name].index(member.side)
    along = (
        value(parameter).double().transpose(0, dimension).reshape(parameter.shape[dimension], -1).sum(1).cpu().numpy()
    )
    # With groups, the weights stand for the inputs of one group: those of the first, the others share its units.
    units = member.units[: len(along)]
    np.add.at(total, units[units != ELSEWHERE], along[units != ELSEWHERE])
    return total


def _last(answer: Tensor | tuple[Tensor, ...]) -> Tensor:
    return answer[-1] if isinstance(answer, tuple) else answer
