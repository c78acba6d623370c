"""Other numbers of channels for the modules of a network: the structure that channel pruning leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, replace_module

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def resize(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Give modules other widths, with fresh weights; the edit "resize".

    `arguments` is {"modules": {NAME: WIDTHS}} with WIDTHS as `widths` gives them. Raises ModelError for a module that
    does not exist, that cannot be resized, or for widths that it cannot have.
    """
    for name, wanted in arguments["modules"].items():
        replace_module(module, name, _resized(get_module(module, name), name, wanted))
    return module


def widths(module: nn.Module) -> dict[str, int]:
    """What `resize` can change of a module: inputs, outputs and groups of a convolution, inputs and outputs of a linear
    layer, outputs of a batch normalisation; nothing of any other."""
    if isinstance(module, _CONVOLUTIONS):
        return {"inputs": module.in_channels, "outputs": module.out_channels, "groups": module.groups}
    if isinstance(module, nn.Linear):
        return {"inputs": module.in_features, "outputs": module.out_features}
    if isinstance(module, _BATCH_NORMS):
        return {"outputs": module.num_features}
    return {}


def _resized(module: nn.Module, name: str, wanted: Mapping[str, int]) -> nn.Module:
    present = widths(module)
    if not present:
        raise ModelError(
            f'module "{name}" is a {type(module).__name__}, which has no channels to set; '
            f"expected Conv1d, Conv2d, Linear or BatchNorm"
        )
    if not set(wanted) <= set(present) or not all(isinstance(n, int) and n >= 1 for n in wanted.values()):
        raise ModelError(f'module "{name}": expected positive numbers for {", ".join(present)}, got {dict(wanted)}')
    try:
        return _rebuilt(module, **(present | dict(wanted)))
    except ValueError as error:
        raise ModelError(f'module "{name}" cannot have {dict(wanted)}: {error}') from error


def _rebuilt(module: nn.Module, outputs: int, inputs: int = 0, groups: int = 1) -> nn.Module:
    if isinstance(module, _CONVOLUTIONS):
        # The tuples of a convolution have its own number of dimensions, which the two classes' types do not share.
        kernel: dict[str, Any] = {
            name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        return type(module)(inputs, outputs, groups=groups, bias=module.bias is not None, **kernel)
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, bias=module.bias is not None)
    assert isinstance(module, _BATCH_NORMS)
    return type(module)(outputs, module.eps, module.momentum, module.affine, module.track_running_stats)
