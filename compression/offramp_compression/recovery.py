"""Fine-tune a network that has just lost something: channels, ranks, single weights, or the freedom of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Unpack

from offramp_compression.data.batches import Augment, Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.distillation.distill import distill
from offramp_compression.distillation.settings import DistillationSettings
from offramp_compression.network import Network
from offramp_compression.pruning.masks import Masks, frozen_zeros
from offramp_compression.training.learn import Learnt, Watching, learn
from offramp_compression.training.objective import Supervised
from offramp_compression.training.settings import TrainingSettings


def recover(
    network: Network,
    data: Dataset,
    training: TrainingSettings,
    *,
    teacher: Network | None = None,
    distillation: DistillationSettings | None = None,
    label_smoothing: float = 0.0,
    masks: Masks | None = None,
    augment: Augment | None = None,
    validate: Dataset | None = None,
    **watching: Unpack[Watching],
) -> Learnt:
    """Train `network`, in place, and keep the provenance of what was done to it, with how it recovered added.

    With a `teacher`, which is best the network before its loss, it learns from that one's answers and the labels, as
    `distillation` says; without, from the labels alone, with `label_smoothing`. What `masks` leave out stays at zero.
    Raises what `fit` does.
    """
    with frozen_zeros(network.module, masks) if masks else nullcontext():
        if teacher is None:
            batches = Batches(data, training.batch_size, training.seed, augment)
            learnt = learn(
                network, batches, training, Supervised(label_smoothing),
                origin=network.digest(), validate=validate, **watching,
            )  # fmt: skip
        else:
            learnt = distill(
                network, [teacher], data, distillation or DistillationSettings(), training,
                augment=augment, origin=network.digest(), validate=validate, **watching,
            )  # fmt: skip
    return replace(learnt, network=_with_history(learnt.network, network, teacher))


def _with_history(learnt: Network, before: Network, teacher: Network | None) -> Network:
    settings: Mapping[str, object] = {**before.provenance.settings, "recovery": dict(learnt.provenance.settings)}
    parents = dict.fromkeys((*before.provenance.parents, *([teacher.digest()] if teacher else [])))
    told = replace(learnt.provenance, method=before.provenance.method, settings=settings, parents=tuple(parents))
    return replace(learnt, provenance=told)
