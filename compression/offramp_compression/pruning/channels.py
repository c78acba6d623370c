"""Which channels of a network must stay or go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from offramp_common.text import did_you_mean, quoted

from offramp_compression.errors import ModelError

Side: TypeAlias = Literal["inputs", "outputs"]
Indices: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

# Module name -> side -> which of its channels stay, bool [width].
Kept: TypeAlias = Mapping[str, Mapping[Side, Mask]]
# Group name -> its units that go, int64 [any].
Removed: TypeAlias = Mapping[str, Indices]

ELSEWHERE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One side of a module. ``units``, int64 [width], is the unit of each channel, or ELSEWHERE if it has none here."""

    module: str
    side: Side
    units: Indices


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Channels of several modules that depend on one another, such as all that a residual stream runs through.

    They come in ``size`` units; a unit is what can be taken out on its own: usually one channel of each module, several
    where a convolution has groups or a feature map is flattened. ``name`` is one of the modules whose outputs they are.
    """

    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """What can be pruned of a network, and why the rest cannot: ``fixed`` is module name -> reason."""

    groups: tuple[ChannelGroup, ...]
    fixed: Mapping[str, str]

    def without(self, names: Sequence[str]) -> Channels:
        """All but the groups through which the outputs of the modules ``names`` run.

        Raises ModelError for a name that is not a layer of the network.
        """
        for name in names:
            self._check_known(name)
        spared = [group for group in self.groups if _outputs_of(group) & set(names)]
        fixed = {name: "it was asked to be kept" for group in spared for name in _outputs_of(group)}
        return Channels(tuple(group for group in self.groups if group not in spared), {**self.fixed, **fixed})

    def _check_known(self, name: str) -> None:
        known = {each for group in self.groups for each in _outputs_of(group)} | set(self.fixed)
        if name not in known:
            raise ModelError(f"the network has no layer {quoted(name)}{did_you_mean(name, known)}")

    def check(self, removed: Removed) -> None:
        """Raise ModelError unless ``removed`` names groups of these, units that they have, and leaves each some."""
        groups = {group.name: group for group in self.groups}
        for name, units in removed.items():
            if name in self.fixed:
                raise ModelError(f"layer {quoted(name)} cannot be pruned: {self.fixed[name]}")
            if name not in groups:
                raise ModelError(f"there is no group of channels {quoted(name)}{did_you_mean(name, groups)}")
            size = groups[name].size
            if len(units) and not (units.min() >= 0 and units.max() < size):
                raise ModelError(f"group {quoted(name)} has units 0 to {size - 1}, not {units.min()} to {units.max()}")
            if len(np.unique(units)) >= size:
                raise ModelError(f"all {size} units of {quoted(name)} would go; keep at least one")


def kept(groups: Sequence[ChannelGroup], removed: Removed) -> Kept:
    """Which channels stay of every module that is touched when the units ``removed`` go."""
    masks: dict[str, dict[Side, Mask]] = defaultdict(dict)
    for group in groups:
        if group.name not in removed:
            continue
        for member in group.members:
            stays = ~np.isin(member.units, removed[group.name])
            before = masks[member.module].get(member.side)
            masks[member.module][member.side] = stays if before is None else before & stays
    return masks


def _outputs_of(group: ChannelGroup) -> set[str]:
    return {member.module for member in group.members if member.side == "outputs"}
