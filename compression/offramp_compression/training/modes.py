"""Training mode that leaves what is frozen alone."""

from __future__ import annotations

from torch import nn


def train_mode(module: nn.Module) -> None:
    """Put `module` into training mode, but every part whose parameters are all frozen into evaluation mode.

    A frozen BatchNorm must neither normalise by the batch nor update its running figures, and a frozen trunk has
    nothing to gain from its own dropout. Parts without parameters follow what they are part of.
    """
    module.train()
    for child in module.children():
        if _frozen(child):
            child.eval()
        elif any(True for _ in child.parameters()):
            train_mode(child)


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
