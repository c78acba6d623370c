"""Modules of a network by their dotted names."""

from __future__ import annotations

from offramp_common.text import did_you_mean, quoted
from torch import nn

from offramp_compression.errors import ModelError


def get_module(module: nn.Module, name: str) -> nn.Module:
    """The submodule called `name`, as in `named_modules`. Raises ModelError with the nearest name if there is none."""
    known: dict[str, nn.Module] = dict(module.named_modules())
    if name not in known:
        raise ModelError(f"the network has no module {quoted(name)}{did_you_mean(name, filter(None, known))}")
    return known[name]


def replace_module(module: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` where the submodule `name` is. Raises ModelError if there is none, or for the root."""
    get_module(module, name)
    parent, _, child = name.rpartition(".")
    if not child:
        raise ModelError("a network cannot be replaced within itself; name one of its modules")
    setattr(get_module(module, parent), child, replacement)


def parameter_count(module: nn.Module) -> int:
    """The number of trainable and frozen parameters; one that is shared counts once.

    A layer that computes with more weights than it has parameters, as it looks them up in a codebook, says so in
    `further_weights`: sharing values makes a file smaller, and not a network.
    """
    listed = sum(parameter.numel() for parameter in module.parameters())
    return listed + sum(getattr(part, "further_weights", 0) for part in module.modules())
