"""Find the channels that depend on one another, by following a network's computation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from offramp_compression.errors import ModelError
from offramp_compression.inputs import understood
from offramp_compression.pruning.channels import ELSEWHERE, ChannelGroup, Channels, Indices, Member, Side, kept
from offramp_compression.pruning.slicing import axes, is_depthwise, shrink, silence
from offramp_compression.resize import widths

# Of the largest answer: rounding of a sum in another order, and no more.
_TOLERANCE = 1e-4


_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_FINAL = "its outputs are the network's outputs"


@dataclass(frozen=True, slots=True, eq=False)
class _Touched:
    """A layer of a group as torch-pruning found it: its ``channels`` follow those of the group's root at ``roots``."""

    name: str
    layer: nn.Module
    side: Side
    channels: Indices
    roots: Indices


@dataclass(frozen=True, slots=True, eq=False)
class _Dependency:
    """All that depends on the outputs of one layer, the root; ``obstacle`` says why they cannot be taken out."""

    root: str
    width: int
    touched: tuple[_Touched, ...]
    obstacle: str

    def makers(self) -> list[str]:
        return [each.name for each in self.touched if each.side == "outputs" and isinstance(each.layer, _LAYERS)]


def find_channels(module: nn.Module, inputs: Sequence[Tensor]) -> Channels:
    """The groups of channels that can be pruned, and for every other convolution or linear layer why it cannot.

    ``inputs`` are forward's arguments, model-ready, with at least one example. The dependencies are those of Fang et
    al., DepGraph: Towards Any Structural Pruning (2023). Each group is then put to the test: taking out half of it must
    give the answers that zeroing that half gives. Raises ModelError if the network does not run on the inputs, or if
    its computation cannot be followed.
    """
    with understood(inputs):
        _answers(module, inputs)
    order = [name for name, layer in module.named_modules() if isinstance(layer, _LAYERS)]
    fixed = dict.fromkeys(order, "the network does not use it for these inputs")
    groups = []
    for dependency in _dependencies(module, inputs):
        reason = dependency.obstacle
        if not reason:
            group = _group(dependency)
            reason = _refusal(module, inputs, group)
            groups += [] if reason else [group]
        fixed |= dict.fromkeys(dependency.makers(), reason)
    return Channels(
        tuple(sorted(groups, key=lambda group: order.index(group.name))),
        {name: reason for name, reason in fixed.items() if reason},
    )


def _dependencies(module: nn.Module, inputs: Sequence[Tensor]) -> Iterator[_Dependency]:
    traced = copy.deepcopy(module).requires_grad_(True)
    names = {layer: name for name, layer in traced.named_modules()}
    try:
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(traced, list(inputs), verbose=False)
            found = list(graph.get_all_groups(root_module_types=_LAYERS))
    except Exception as error:
        # Whatever the network or the tracer trips over, they have no type for it.
        raise ModelError(f"the network's computation cannot be followed: {error}") from error
    for group in found:
        touched = tuple(_touched(graph, names, group))
        root = touched[0]
        yield _Dependency(root.name, len(root.channels), touched, _obstacle(graph, names, group, touched))


def _touched(graph: Any, names: dict[nn.Module, str], group: Any) -> Iterator[_Touched]:
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, nn.Module) and layer in names:
            side: Side = "outputs" if graph.is_out_channel_pruning_fn(item.dep.handler) else "inputs"
            yield _Touched(names[layer], layer, side, np.asarray(item.idxs), np.asarray(item.root_idxs))


def _obstacle(graph: Any, names: dict[nn.Module, str], group: Any, touched: Sequence[_Touched]) -> str:
    if any(item.dep.target.type == torch_pruning.ops.OPTYPE.OUTPUT for item in group):
        return _FINAL
    if all(each.side == "outputs" for each in touched):
        return _FINAL
    if any(isinstance(item.dep.target.module, nn.Parameter) for item in group):
        return "a parameter that belongs to no layer has the same width"
    for each in touched:
        if not axes(each.layer):
            return f'it is tied to "{each.name}", a {type(each.layer).__name__}, whose width cannot be changed'
    return ""


def _group(dependency: _Dependency) -> ChannelGroup:
    unit_of = _units(dependency)
    members = []
    for each in dependency.touched:
        units = np.full(widths(each.layer)[each.side], ELSEWHERE)
        units[each.channels] = unit_of[each.roots]
        members.append(Member(each.name, each.side, units))
    return ChannelGroup(dependency.root, int(unit_of.max()) + 1, tuple(members))


def _units(dependency: _Dependency) -> Indices:
    """The unit of each of the root's channels.

    A convolution with groups must lose as many channels in each group, so the channels that have the same place in
    their group go together.
    """
    width = dependency.width
    ties = [(np.empty(0, int), np.empty(0, int))]
    for each in dependency.touched:
        groups = widths(each.layer).get("groups", 1)
        if groups > 1 and not is_depthwise(each.layer):
            place = each.channels % (widths(each.layer)[each.side] // groups)
            representative = dict(zip(place, each.roots, strict=True))
            ties.append((each.roots, np.asarray([representative[at] for at in place])))
    rows, columns = (np.concatenate(ends) for ends in zip(*ties, strict=True))
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(width, width))
    unit_of: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return unit_of


def _refusal(module: nn.Module, inputs: Sequence[Tensor], group: ChannelGroup) -> str:
    """Take every other unit out and see; empty if the answers are right."""
    if group.size < 2:
        return "all its channels depend on one another"
    keep = kept([group], {group.name: np.arange(0, group.size, 2)})
    try:
        narrow = _answers(shrink(module, keep)[0], inputs)
    except (RuntimeError, ValueError, IndexError, ModelError) as error:
        return f"the network does not run with fewer channels there: {str(error).splitlines()[0]}"
    silent = _answers(silence(module, keep), inputs)
    if len(narrow) != len(silent) or not all(map(_same, narrow, silent)):
        return "the network's answers depend on how many channels there are, as with a normalisation over channels"
    return ""


@torch.inference_mode()
def _answers(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    answer = module.eval()(*inputs)
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    scale = max(float(right.abs().max()), 1.0)
    return bool((left - right).abs().max() <= _TOLERANCE * scale)
