"""Where to take channels from: as much as the target wants, from where the network feels it least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp_compression.errors import ModelError
from offramp_compression.pruning.channels import ChannelGroup
from offramp_compression.pruning.cost import Cost, Stay, WidthTable
from offramp_compression.pruning.sensitivity import Point

# Of a group's units, at most so many are given up at once; it bounds how many widths are tried.
_LEVELS = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """Widths are multiples of ``multiple`` units, and at least ``least`` of a group's units stay, a share."""

    multiple: int = 8
    least: float = 0.1


def uniform(groups: Sequence[ChannelGroup], ratio: float, bounds: Bounds) -> Stay:
    """The same share of every group goes, as near as ``bounds`` allow. Raises ModelError for a ratio not in (0, 1)."""
    if not 0 < ratio < 1:
        raise ModelError(f"cannot prune a ratio of {ratio:g}; expected more than 0 and less than 1")
    return {group.name: min(_levels(group.size, bounds), key=_distance(group.size * (1 - ratio))) for group in groups}


def allocate(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, Sequence[Point]],
    table: WidthTable,
    cost: Cost,
    target: float,
    bounds: Bounds,
) -> Stay:
    """How many units of each group stay, so that the cost is at most ``target`` times the whole network's.

    Greedy: the step that comes next is the one, of any length in any group, whose loss (interpolated in the scan's
    ``curves``, and taken to add up over groups) is least for what it saves. Raises ModelError for a target that is not
    in (0, 1) or that cannot be reached within ``bounds``.
    """
    if not 0 < target < 1:
        raise ModelError(f"a target of {target:g} times the {cost.quantity} is none; expected more than 0, less than 1")
    levels = {
        # Beyond the scan nothing is known of the loss.
        group.name: [count for count in _levels(group.size, bounds) if count >= curves[group.name][-1].stay]
        for group in groups
    }
    loss = {group.name: _interpolated(curves[group.name]) for group in groups}
    whole = cost.of({})
    stay = {group.name: group.size for group in groups}

    def priced(name: str, count: int) -> float:
        return cost.of(table.of({**stay, name: count})) / whole

    now = 1.0
    while now > target:
        step = _best_step(stay, now, levels, loss, priced)
        if step is None:
            raise ModelError(
                f"{target:g} of the {cost.quantity} cannot be reached: with all that may be pruned gone, {now:.2f} is "
                f"left; ask for more than that to be left, or let more be pruned: fewer layers in keep, a smaller least"
            )
        name, furthest = step
        # The last step goes no further than it has to.
        enough = [count for count in levels[name] if furthest < count < stay[name] and priced(name, count) <= target]
        stay[name] = max(enough, default=furthest)
        now = priced(name, stay[name])
    return stay


def _best_step(
    stay: Mapping[str, int],
    now: float,
    levels: Mapping[str, Sequence[int]],
    loss: Mapping[str, Callable[[int], float]],
    priced: Callable[[str, int], float],
) -> tuple[str, int] | None:
    best, best_slope = None, (np.inf, 0.0)
    for name, present in stay.items():
        for count in (level for level in levels[name] if level < present):
            saved = now - priced(name, count)
            if saved <= 0:
                continue
            # Where nothing is lost, what saves more comes first.
            slope = (max(loss[name](count) - loss[name](present), 0.0) / saved, -saved)
            if slope < best_slope:
                best, best_slope = (name, count), slope
    return best


def _levels(size: int, bounds: Bounds) -> list[int]:
    """The numbers of units that may stay, all of them first."""
    step = bounds.multiple * max(1, round(size / bounds.multiple / _LEVELS))
    floor = max(bounds.least * size, 1)
    multiples = range(size - size % bounds.multiple or size, 0, -bounds.multiple)
    return sorted({size} | {count for count in multiples if count >= floor and count % step == 0}, reverse=True)


def _interpolated(points: Sequence[Point]) -> Callable[[int], float]:
    ordered = sorted(points, key=lambda point: point.stay)
    counts = [point.stay for point in ordered]
    # Fewer channels are never better: where a scan says so, it is noise.
    losses = np.maximum.accumulate([point.loss for point in ordered][::-1])[::-1]
    return lambda count: float(np.interp(count, counts, losses))


def _distance(wanted: float) -> Callable[[int], float]:
    return lambda count: abs(count - wanted)
