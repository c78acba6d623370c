"""Structured pruning from beginning to end: what can go, what is missed least, how much of it, and out with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
from offramp_common.toml_schema import Rule, between
from torch import Tensor

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.data.sample import sample
from offramp_compression.errors import ModelError
from offramp_compression.network import Network
from offramp_compression.pruning.allocation import Bounds, allocate, uniform
from offramp_compression.pruning.channels import Channels
from offramp_compression.pruning.cost import Cost, Flops, Parameters, Stay, WidthTable
from offramp_compression.pruning.groups import find_channels
from offramp_compression.pruning.importance import Ranking, by_magnitude, by_taylor, least
from offramp_compression.pruning.sensitivity import Point, Scan, scan
from offramp_compression.pruning.structured import allocate_latency, take_out

_SHARE = Rule("a number above 0 and below 1", lambda value: 0 < value < 1)
_TAYLOR_STEPS, _TAYLOR_BATCH = 16, 64
_SETTLING_EXAMPLES = 512


@dataclass(frozen=True, slots=True)
class ChannelPruning:
    """How much of a network is to be left, and where channels may be taken from."""

    # What is to get smaller: the counted operations, the number of parameters, or the measured time of a batch. In
    # "ratio", the same share of every group goes, and nothing is scanned.
    target: Literal["flops", "parameters", "latency", "ratio"] = "flops"
    # What is left of it, a share; with "ratio", what is left of each group.
    left: Annotated[float, _SHARE] = 0.5
    # Layers whose outputs stay as they are.
    keep: tuple[str, ...] = ()
    importance: Literal["magnitude", "taylor"] = "magnitude"
    # Widths are multiples of this, as processors compute these faster.
    multiple: Annotated[int, between(1)] = 8
    # The least share of a group's channels that stays.
    least: Annotated[float, _SHARE] = 0.1
    # Held-out examples that the scan measures accuracy on.
    scan_examples: Annotated[int, between(1)] = 1000
    # The batch that "latency" times.
    batch_size: Annotated[int, between(1)] = 16
    seed: Annotated[int, between(0)] = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """``scan`` is None where there was none; ``stay`` says how many units of each group are left."""

    network: Network
    channels: Channels
    scan: Scan | None
    stay: Stay


def prune_channels(
    network: Network,
    train: Dataset,
    held_out: Dataset,
    settings: ChannelPruning,
    *,
    scanned: Scan | None = None,
    progress: Callable[[str, Point], None] = lambda name, point: None,
) -> Pruned:
    """The network with fewer channels, not yet fine-tuned (see `recovery.recover`).

    The scan measures on ``held_out``; gradients and batch statistics come from ``train``; ``scanned`` is a scan that
    was made before. Raises ModelError if nothing can be pruned, if the target cannot be reached, or if ``scanned`` is
    of another network or importance.
    """
    channels = find_channels(network.module, tensors(held_out, np.arange(2))).without(settings.keep)
    if not channels.groups:
        raise ModelError(f"no layer can be pruned: {_reasons(channels)}")
    ranking = _ranking(network, channels, train, settings)
    bounds = Bounds(settings.multiple, settings.least)
    if settings.target == "ratio":
        found, stay = None, uniform(channels.groups, 1 - settings.left, bounds)
    else:
        found = scanned or _scanned(network, channels, ranking, train, held_out, settings, progress)
        _check_scan(found, network, channels, settings)
        stay = _allocated(network, channels, ranking, found, held_out, settings, bounds)
    removed = {name: units for name, units in least(ranking, stay).items() if len(units)}
    if not removed:
        raise ModelError(f"no group has {settings.multiple} channels to spare; prune in smaller multiples")
    said = {"structure": "channels", **asdict(settings), "keep": list(settings.keep)}
    return Pruned(take_out(network, channels, removed, said), channels, found, stay)


def _ranking(network: Network, channels: Channels, train: Dataset, settings: ChannelPruning) -> Ranking:
    if settings.importance == "magnitude":
        return by_magnitude(network.module, channels.groups)
    batches = Batches(train, min(_TAYLOR_BATCH, len(train)), settings.seed)
    return by_taylor(network.module, channels.groups, batches, _TAYLOR_STEPS)


def _scanned(
    network: Network,
    channels: Channels,
    ranking: Ranking,
    train: Dataset,
    held_out: Dataset,
    settings: ChannelPruning,
    progress: Callable[[str, Point], None],
) -> Scan:
    return scan(
        network.module, channels, ranking, sample(held_out, settings.scan_examples, settings.seed),
        network=network.digest(), importance=settings.importance,
        settle=sample(train, _SETTLING_EXAMPLES, settings.seed), progress=progress,
    )  # fmt: skip


def _check_scan(found: Scan, network: Network, channels: Channels, settings: ChannelPruning) -> None:
    if (found.network, found.importance) != (network.digest(), settings.importance):
        raise ModelError("the sensitivity scan is of another network or another importance; scan again")
    missing = [group.name for group in channels.groups if group.name not in found.curves]
    if missing:
        raise ModelError(f"the sensitivity scan knows nothing of {', '.join(missing)}; scan again")


def _allocated(
    network: Network,
    channels: Channels,
    ranking: Ranking,
    found: Scan,
    held_out: Dataset,
    settings: ChannelPruning,
    bounds: Bounds,
) -> Stay:
    batch = tensors(held_out, np.arange(settings.batch_size) % len(held_out))
    if settings.target == "latency":
        return allocate_latency(network, channels, ranking, found, batch, settings.left, bounds)
    table = WidthTable(network.module, channels.groups, ranking)
    return allocate(channels.groups, found.curves, table, _cost(network, settings, batch), settings.left, bounds)


def _cost(network: Network, settings: ChannelPruning, batch: Sequence[Tensor]) -> Cost:
    if settings.target == "parameters":
        return Parameters(network.module)
    return Flops(network.module, batch)


def _reasons(channels: Channels) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in channels.fixed.items()) or "it has none"
