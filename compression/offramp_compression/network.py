"""A network with everything that is known of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from offramp_compression.blueprint import Blueprint
from offramp_compression.provenance import Provenance


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A `module`, how to build it again, what its classes and its inputs and outputs are called, and its history.

    `input_names` are for forward's arguments in order and `output_names` for its results.
    """

    module: nn.Module
    blueprint: Blueprint
    class_names: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    provenance: Provenance

    def described(
        self, *, settings: Mapping[str, Any] | None = None, metrics: Mapping[str, float] | None = None
    ) -> Network:
        """The same network, with these added to its provenance."""
        before = self.provenance
        merged = replace(
            before,
            settings={**before.settings, **(settings or {})},
            metrics={**before.metrics, **(metrics or {})},
        )
        return replace(self, provenance=merged)

    def digest(self) -> str:
        """SHA-256, in hex, of structure and weights: what a child names as its parent."""
        state = hashlib.sha256(json.dumps(asdict(self.blueprint), sort_keys=True, default=list).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            state.update(f"{name} {tensor.dtype}{tuple(tensor.shape)}".encode())
            # As bytes, since numpy does not know every type that torch does.
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return state.hexdigest()
