"""What a run is made of, in a form that can be compared with another's."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from torch import nn

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.training.objective import Objective
from offramp_compression.training.settings import TrainingSettings


def identity(
    module: nn.Module, train: Batches, settings: TrainingSettings, objective: Objective, validate: Dataset | None,
    origin: str,
) -> dict[str, Any]:  # fmt: skip
    """JSON-able values, equal for two runs if and only if they would end with the same weights."""
    known = {
        **settings.identity(),
        "batch_size": train.batch_size,
        "order": train.seed,
        "augment": _name(train.augment),
        "data": train.data.digest(),
        "validation data": validate.digest() if validate is not None and settings.patience else "",
        "network": _structure(module),
        "origin": origin,
        **{f"objective.{name}": value for name, value in objective.describe().items()},
    }
    # Tuples become lists, as they would in any file.
    plain: dict[str, Any] = json.loads(json.dumps(known))
    return plain


def _structure(module: nn.Module) -> str:
    """A digest of the names and shapes of all weights, and of which are trained."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    lines = [f"{name} {tuple(value.shape)} {name in trained}" for name, value in module.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _name(augment: Callable[..., Any] | None) -> str:
    if augment is None:
        return ""
    if isinstance(augment, functools.partial):
        return f"{_name(augment.func)} {augment.args} {augment.keywords}"
    return repr(augment) if is_dataclass(augment) else getattr(augment, "__qualname__", type(augment).__qualname__)
