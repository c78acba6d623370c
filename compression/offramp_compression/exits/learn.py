"""Give a network exits that have learnt their task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from offramp_common.errors import ConfigurationError
from offramp_common.toml_schema import Rule, between, every
from safetensors import SafetensorError
from safetensors.torch import load_file

from offramp_compression.data.batches import Augment, Batches
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.exits.attach import attach
from offramp_compression.exits.frozen import Heads, never_varies, pooled_batches
from offramp_compression.exits.network import MultiExit
from offramp_compression.exits.objectives import JointExits, SelfDistilledExits
from offramp_compression.network import Network
from offramp_compression.training.learn import Learnt, Watching, learn
from offramp_compression.training.settings import TrainingSettings

# What the heads' weights are called in a network's file.
_HEADS = "heads."


@dataclass(frozen=True, slots=True)
class ExitSettings:
    # The modules that exits are attached to, in any order.
    modules: tuple[str, ...]
    # "auto", "pooled", "mean", "first-token" or "flat": see `heads.POOLINGS`.
    head: str = "auto"
    # forward's argument that says which positions are not padding; left out: "attention_mask" where there is one.
    mask: str = ""
    # "joint": trunk and heads learn together; "frozen": only the heads learn, and the network's own answer stays.
    train: Literal["joint", "frozen"] = "joint"
    # What each exit's loss counts, the deepest last; none: all alike.
    weights: Annotated[tuple[float, ...], every(between(0))] = ()
    # How much early exits learn from the deepest instead of from the labels.
    distill: Annotated[float, between(0, 1)] = 0.0
    # Of what they learn from the deepest.
    temperature: Annotated[float, Rule("a number above 0", lambda value: value > 0)] = 3.0
    label_smoothing: Annotated[float, between(0, 1)] = 0.0


def load_exits(network: Network, exits: ExitSettings, data: Dataset, file: Path) -> Network:
    """A copy of `network` with exits that learnt before, on a frozen trunk: the weights "heads.*" of a .safetensors
    `file`, such as the model file of a network with exits; whatever else it holds does not count.

    Raises what `attach` raises, and ModelError if the file has no heads or others.
    """
    child = _attached(network, exits, data, seed=0)
    module = child.module
    assert isinstance(module, MultiExit)
    try:
        found = load_file(file).items()
        module.heads.load_state_dict({name[len(_HEADS) :]: each for name, each in found if name.startswith(_HEADS)})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{file} does not hold the heads of exits at {', '.join(exits.modules)}: {error}") from error
    return child.described(settings={"train": "frozen", "heads": file.name})


def learn_exits(
    network: Network,
    exits: ExitSettings,
    data: Dataset,
    training: TrainingSettings,
    *,
    augment: Augment | None = None,
    validate: Dataset | None = None,
    **watching: Unpack[Watching],
) -> Learnt:
    """A copy of `network` with trained exits; see `attach`. Its metrics have the last epoch's accuracies by exit.

    Heads on a frozen trunk learn in one pass through it, unless `augment` makes other examples each time. Raises what
    `attach` and `fit` raise, and ConfigurationError for patience with a frozen trunk.
    """
    frozen = exits.train == "frozen"
    if frozen and training.patience:
        raise ConfigurationError("patience watches the deepest exit, which a frozen trunk does not change; set it to 0")
    child = _attached(network, exits, data, training.seed)
    batches = Batches(data, training.batch_size, training.seed, augment)
    run: dict[str, Any] = {
        "method": "attach-exits", "details": _details(child, exits), "origin": network.digest(), **watching,
    }  # fmt: skip
    if frozen and never_varies(augment):
        return _learn_heads(child, batches, training, _objective(exits), run)
    return learn(child, batches, training, _objective(exits), validate=validate, **run)


def _attached(network: Network, exits: ExitSettings, data: Dataset, seed: int) -> Network:
    example = tensors(data, np.arange(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return attach(network, exits.modules, example, head=exits.head, mask=exits.mask or None)


def _learn_heads(
    child: Network, batches: Batches, training: TrainingSettings, objective: JointExits, run: dict[str, Any]
) -> Learnt:
    module = child.module
    assert isinstance(module, MultiExit)
    heads = replace(child, module=Heads(module))
    learnt = learn(heads, pooled_batches(module, batches), training, objective, **run)
    # Of what was learnt from, not of what the trunk has made of it.
    provenance = replace(learnt.network.provenance, data_digest=batches.data.digest())
    return Learnt(replace(child, module=module.eval(), provenance=provenance), learnt.history)


def _objective(exits: ExitSettings) -> JointExits:
    frozen = exits.train == "frozen"
    if not exits.distill:
        return JointExits(exits.weights, label_smoothing=exits.label_smoothing, freeze_trunk=frozen)
    return SelfDistilledExits(
        exits.weights, share=exits.distill, temperature=exits.temperature, label_smoothing=exits.label_smoothing,
        freeze_trunk=frozen,
    )  # fmt: skip


def _details(child: Network, exits: ExitSettings) -> Mapping[str, Any]:
    return {**child.provenance.settings, "train": exits.train}
