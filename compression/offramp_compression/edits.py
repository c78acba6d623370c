"""The kinds of structural change that a blueprint may name.

Each takes a freshly built network and the edit's arguments, changes the structure in place or returns another module,
and needs no weights: those come from the model file afterwards. Modules that are listed here must import neither
`blueprint` nor `network`, which stand above this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import nn

from offramp_compression.classifier import replace_classifier
from offramp_compression.codebooks import apply_shared_weights
from offramp_compression.exits.network import apply_exits
from offramp_compression.exits.stages import apply_stage
from offramp_compression.factorization.depthwise import apply_depthwise_separable
from offramp_compression.factorization.low_rank import apply_low_rank
from offramp_compression.resize import resize

ApplyEdit: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], nn.Module]

EDITS: Mapping[str, ApplyEdit] = MappingProxyType(
    {
        "head": replace_classifier,
        "resize": resize,
        "low_rank": apply_low_rank,
        "depthwise_separable": apply_depthwise_separable,
        "shared_weights": apply_shared_weights,
        "exits": apply_exits,
        "stage": apply_stage,
    }
)
