"""Optimisers over what may be trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from offramp_compression.errors import TrainingError
from offramp_compression.training.settings import TrainingSettings

_ADAM_BETA2 = 0.999


def make_optimizer(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW (Loshchilov & Hutter, 2017), over the parameters that are not frozen.

    Raises TrainingError if all are.
    """
    groups = _decay_groups([parameter for parameter in parameters if parameter.requires_grad], settings.weight_decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.momentum, _ADAM_BETA2))
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov)


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Shrinking norms and biases does not regularise, so only what has two dimensions or more decays."""
    if not parameters:
        raise TrainingError("every parameter is frozen, so there is nothing to train; freeze fewer blocks")
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
