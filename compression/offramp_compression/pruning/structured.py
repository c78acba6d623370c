"""A network with fewer channels, and the file-ready record of what was taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from offramp_compression.blueprint import Edit
from offramp_compression.errors import ModelError
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions
from offramp_compression.pruning.allocation import Bounds, allocate
from offramp_compression.pruning.channels import Channels, Removed, kept
from offramp_compression.pruning.cost import Latency, Stay, WidthTable, seconds
from offramp_compression.pruning.importance import Ranking, least
from offramp_compression.pruning.sensitivity import Scan
from offramp_compression.pruning.slicing import shrink

_ROUNDS = 4


def take_out(network: Network, channels: Channels, removed: Removed, settings: Mapping[str, Any]) -> Network:
    """The network without the units ``removed``: narrower layers, the weights of what stays, and a "resize" edit.

    The weights are not fine-tuned. ``settings`` go into its provenance. Raises ModelError for groups or units that the
    network does not have, that cannot be pruned, or of which none would be left.
    """
    channels.check(removed)
    module, arguments = shrink(network.module, kept(channels.groups, removed))
    provenance = Provenance(
        method="prune", settings=settings, parents=(network.digest(),), versions=installed_versions()
    )  # fmt: skip
    blueprint = network.blueprint.with_edit(Edit("resize", arguments))
    return replace(network, module=module.eval(), blueprint=blueprint, provenance=provenance)


def allocate_latency(
    network: Network,
    channels: Channels,
    ranking: Ranking,
    scan: Scan,
    inputs: Sequence[Tensor],
    target: float,
    bounds: Bounds,
) -> Stay:
    """As `allocation.allocate` for seconds of a forward pass on ``inputs``, held against the clock.

    The estimate from single layers is corrected by what the narrower network really takes, measured in turn with the
    whole one, and tried again a few times; what is returned is the first that takes at most ``target`` times as long,
    or the fastest. Raises ModelError if by the estimate the target cannot be reached.
    """
    cost, table = Latency(network.module, inputs), WidthTable(network.module, channels.groups, ranking)
    aimed = target
    tried: list[tuple[float, Stay]] = []
    for _ in range(_ROUNDS):
        try:
            stay = allocate(channels.groups, scan.curves, table, cost, aimed, bounds)
        except ModelError:
            if not tried:
                raise
            break
        share = _measured_share(network, channels, least(ranking, stay), inputs)
        tried.append((share, stay))
        if share <= target:
            break
        aimed *= target / share
    return min(tried, key=lambda each: each[0])[1]


def _measured_share(network: Network, channels: Channels, removed: Removed, inputs: Sequence[Tensor]) -> float:
    narrow, _ = shrink(network.module, kept(channels.groups, removed))
    times = seconds({"whole": network.module, "narrow": narrow}, inputs)
    return times["narrow"] / times["whole"]
