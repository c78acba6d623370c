"""Export a multi-exit network as one model for each stage, for `early_exit` routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offramp_compression.blueprint import Edit
from offramp_compression.exits.stages import StageModule, stage_arguments, stage_modules
from offramp_compression.export.program import NONE_VARY, VariableDimensions
from offramp_compression.export.publish import NOTHING, Additions, Exported, Target, export_network
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions

LOGITS = "logits"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One stage as a network of its own, what it is fed in the examples, and which dimensions of that vary."""

    network: Network
    inputs: tuple[Tensor, ...]
    variable: VariableDimensions


def segments(network: Network, inputs: Sequence[Tensor], variable: VariableDimensions = NONE_VARY) -> list[Segment]:
    """The stages of a network with exits. Run one after the other they return the bits that the whole one returns.

    Stage K takes `hidden_<K-1>_1`, `hidden_<K-1>_2`, ... as the stage before it returned them (the first one: the
    network's inputs), and returns `logits` and `hidden_<K>_1`, ...; the last one returns `logits` only. `inputs` are
    real ones, [N, ...] each, and `variable` names those of which further dimensions vary. Raises ModelError for a
    network without exits, ExportError if it cannot be exported or if something needed later has no batch dimension.
    """
    varying = [variable.get(name, ()) for name in network.input_names]
    stages = stage_modules(network.module, inputs, varying)
    weights = network.digest()
    found: list[Segment] = []
    names, state = network.input_names, tuple(inputs)
    for number, stage in enumerate(stages, 1):
        carried = tuple(f"hidden_{number}_{position}" for position in range(1, stage.carried + 1))
        edit = Edit("stage", stage_arguments(number, inputs, varying))
        made = Network(
            stage.module.eval(), network.blueprint.with_edit(edit), network.class_names, names, (LOGITS, *carried),
            _provenance(weights, number, len(stages)),
        )  # fmt: skip
        found.append(Segment(made, state, dict(zip(names, stage.variable, strict=True))))
        names, state = carried, _run(stage, state)
    return found


def export_segments(
    network: Network,
    inputs: Sequence[Tensor],
    target: Target,
    *,
    variable: VariableDimensions = NONE_VARY,
    additions: Additions = NOTHING,
) -> list[Exported]:
    """Write the whole network as the model `target.name`, and its stages as `<name>-stage1`, `<name>-stage2`, ...

    Each is written whole or not at all and compared with eager execution on `inputs`. `additions` are for the whole and
    the first stage, which take what the network takes. Only the whole can be trained further, so that only it keeps its
    network. Raises ExportError as `export_network` does.
    """
    named = [
        Segment(
            replace(each.network, provenance=_of_model(each.network.provenance, target.name)),
            each.inputs,
            each.variable,
        )
        for each in segments(network, inputs, variable)
    ]
    part = replace(target, keep_network=False)
    targets = [replace(part, name=f"{target.name}-stage{number}") for number in range(1, len(named) + 1)]
    whole = export_network(network, inputs, target, variable=variable, additions=additions)
    added = [additions, *[NOTHING] * (len(named) - 1)]
    return [
        whole,
        *(
            export_network(segment.network, segment.inputs, place, variable=segment.variable, additions=more)
            for segment, place, more in zip(named, targets, added, strict=True)
        ),
    ]


@torch.no_grad()
def _run(stage: StageModule, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    _, *carried = stage.module(*state)
    return tuple(carried)


def _provenance(weights: str, number: int, stages: int) -> Provenance:
    return Provenance(
        "segment",
        settings={"stage": number, "stages": stages, "weights": weights},
        parents=(weights,),
        versions=installed_versions(),
    )


def _of_model(provenance: Provenance, name: str) -> Provenance:
    return replace(provenance, settings={**provenance.settings, "network": name})
