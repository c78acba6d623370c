"""Floating-point operations by module: a multiplication and an addition count as two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def flops_by_module(module: nn.Module, inputs: Sequence[Tensor]) -> Mapping[str, int]:
    """Operations of one forward pass by the name of the module that executes them itself, without its submodules'.

    Counted are convolutions, matrix products and attention, as torch counts them; modules without any are left out.
    ``inputs`` are forward's arguments.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    total = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(module).__name__
    within = {name: total.get(f"{root}.{name}" if name else root, 0) for name, _ in module.named_modules()}
    # What happens outside of any module is the root's own.
    within[""] = counter.get_total_flops()
    return {name: own for name, layer in module.named_modules() if (own := within[name] - _below(name, layer, within))}


def _below(name: str, layer: nn.Module, within: Mapping[str, int]) -> int:
    prefix = f"{name}." if name else ""
    return sum(within.get(prefix + child, 0) for child, _ in layer.named_children())
