"""Go on from a network that has learnt something: for other classes, from newer data, in part or as a whole."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Unpack

import torch
from torch import nn

from offramp_compression.blueprint import Edit
from offramp_compression.classifier import find_classifier, replace_classifier
from offramp_compression.data.batches import Augment, Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.freezing import freeze
from offramp_compression.modules import get_module
from offramp_compression.network import Network
from offramp_compression.training.learn import Learnt, Watching, learn
from offramp_compression.training.objective import Supervised
from offramp_compression.training.settings import TrainingSettings


def fine_tune(
    network: Network,
    data: Dataset,
    settings: TrainingSettings,
    *,
    train: str = "all",
    head: str | None = None,
    augment: Augment | None = None,
    label_smoothing: float = 0.0,
    validate: Dataset | None = None,
    **watching: Unpack[Watching],
) -> Learnt:
    """A child of `network` that has learnt from `data`; the network itself stays as it is.

    Where the classes of the data are not those of the network, the child gets a new head; see `with_classes`. `train`
    is the policy of `freezing.freeze`; what is frozen keeps its BatchNorm figures too. `head` names the classifier,
    which is otherwise the last layer with as many outputs as there are classes. Raises ModelError if there is none, and
    what `fit` raises.
    """
    name = head or find_classifier(network.module, len(network.class_names))
    child = with_classes(network, data.class_names, name, settings.seed)
    freeze(child.module, train, name)
    learnt = learn(
        child, Batches(data, settings.batch_size, settings.seed, augment), settings, Supervised(label_smoothing),
        method="fine-tune", details={"train": train, "head": name}, origin=network.digest(), validate=validate,
        **watching,
    )  # fmt: skip
    child.module.requires_grad_(True)
    return learnt


def with_classes(network: Network, class_names: tuple[str, ...], head: str, seed: int = 0) -> Network:
    """A copy of `network` for other classes: those that it knows already keep what it knows of them.

    `head` names its classifier. The weights of new classes are drawn by `seed`. Raises ModelError for a network with
    exits: they would have to change as well.
    """
    module = copy.deepcopy(network.module)
    if class_names == network.class_names:
        return replace(network, module=module)
    if any(edit.kind == "exits" for edit in network.blueprint.edits):
        raise ModelError("a network with exits cannot change its classes; fine-tune it first and attach exits then")
    edit = Edit("head", {"module": head, "classes": len(class_names)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        replace_classifier(module, edit.arguments)
    _carry_over(get_module(network.module, head), get_module(module, head), network.class_names, class_names)
    return replace(network, module=module.eval(), blueprint=network.blueprint.with_edit(edit), class_names=class_names)


@torch.no_grad()
def _carry_over(before: nn.Module, after: nn.Module, known: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    kept = [name for name in wanted if name in known]
    rows, sources = [wanted.index(name) for name in kept], [known.index(name) for name in kept]
    for (_, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        new[rows] = old[sources]
