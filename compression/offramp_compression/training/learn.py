"""Train a network and write down how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import DataError
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions
from offramp_compression.training.history import Epoch, History
from offramp_compression.training.objective import Objective
from offramp_compression.training.settings import TrainingSettings
from offramp_compression.training.trainer import fit


class Watching(TypedDict, total=False):
    """Keywords of `fit` that do not change what comes out of a run."""

    checkpoint: Path | None
    tensorboard: Path | None
    progress: bool
    name: str
    on_epoch: Callable[[Epoch], None] | None


@dataclass(frozen=True, slots=True)
class Learnt:
    network: Network
    history: History


def learn(
    network: Network,
    train: Batches,
    settings: TrainingSettings,
    objective: Objective,
    *,
    method: str = "train",
    details: Mapping[str, Any] | None = None,
    origin: str = "",
    teachers: tuple[str, ...] = (),
    validate: Dataset | None = None,
    **watching: Unpack[Watching],
) -> Learnt:
    """`fit` the network's module, in place; the network that is returned has it and names its provenance.

    `origin` is the digest of the network that this one was made from, if any, and `teachers` are those of its other
    parents; `details` are further settings of `method`. Raises what `fit` does, and DataError if the classes of the
    data are not those of the network.
    """
    _require_classes(network, train.data, validate)
    # Of a fresh network too: other arguments or published weights can have the same shapes.
    begun = f"{origin} {network.digest()}"
    history = fit(network.module, train, settings, objective, validate=validate, origin=begun, **watching)
    provenance = Provenance(
        method,
        settings={**(details or {}), **objective.describe(), **settings.identity()},
        seed=settings.seed,
        data_digest=train.data.digest(),
        parents=(*((origin,) if origin else ()), *teachers),
        versions=installed_versions(),
        metrics={"epochs": float(history.best_epoch), **history.epochs[history.best_epoch - 1].figures},
    )
    return Learnt(replace(network, provenance=provenance), history)


def _require_classes(network: Network, *parts: Dataset | None) -> None:
    for data in parts:
        if data is not None and data.class_names != network.class_names:
            raise DataError(
                f"the data have the classes {_shown(data.class_names)} and the network {_shown(network.class_names)}; "
                "give data of the same classes in the same order, or give the network a new head (offramp fine-tune)"
            )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
