"""Layers whose weights are positions in a codebook, and how to find the codebook that fits best."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, replace_module

BITS = range(1, 9)
_ITERATIONS = 100
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def apply_shared_weights(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Have layers look their weights up in codebooks that are still empty; the edit "shared_weights".

    `arguments` is {"layers": {NAME: {"bits": BITS, "zero": BOOL}}}; see `SharedLayer`. Raises ModelError for a layer
    that does not exist, that cannot share its weights, or for a number of bits that is none.
    """
    for name, wanted in arguments["layers"].items():
        layer = get_module(module, name)
        refusal = why_not_shared(layer)
        if refusal:
            raise ModelError(f'layer "{name}" cannot share weights: {refusal}')
        if wanted["bits"] not in BITS:
            raise ModelError(f'layer "{name}" cannot have positions of {wanted["bits"]} bits; expected 1 to 8')
        replace_module(module, name, SharedLayer(layer, wanted["bits"], zero=wanted["zero"]))
    return module


def why_not_shared(layer: nn.Module) -> str:
    """Empty if `layer` can share its weights."""
    # Not a subclass, whose weights may be used by other means than a call.
    if type(layer) not in _KINDS:
        return f"it is a {type(layer).__name__}; expected Linear or a convolution that is not transposed"
    return "" if layer.weight is not None else "it does already"


class SharedLayer(nn.Module):
    """A linear layer or a convolution whose weights are looked up in `codebook`, FP32 [2^bits], whenever it runs.

    With `zero` the first value is 0 for good, so that pruned weights stay pruned, and the codebook holds one less. A
    position takes `bits` bits of the buffer `packed`, uint8. The bias stays with `layer`, which has no weights left.
    """

    packed: Tensor

    def __init__(self, layer: nn.Module, bits: int, *, zero: bool) -> None:
        super().__init__()
        assert isinstance(layer, _KINDS)
        self.bits = bits
        self.zero = zero
        self._shape = layer.weight.shape
        self.codebook = nn.Parameter(layer.weight.new_zeros(2**bits - zero))
        self.register_buffer("packed", torch.zeros(-(-self._shape.numel() * bits // 8), dtype=torch.uint8))
        self.layer = copy.deepcopy(layer)
        self.layer.register_parameter("weight", None)
        self._positions: tuple[object, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """Of the layer's shape; the gradient of a value is the sum of those of its weights."""
        values = torch.cat([self.codebook.new_zeros(1), self.codebook]) if self.zero else self.codebook
        return values[self.positions()].view(self._shape)

    @property
    def further_weights(self) -> int:
        """How many weights it computes with beyond its parameters; see `modules.parameter_count`."""
        return self._shape.numel() - len(self.codebook)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, self.weight, self.layer.bias)
        answer: Tensor = self.layer._conv_forward(x, self.weight, self.layer.bias)
        return answer

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Take the values and the positions that come closest to `weight`."""
        flat = weight.detach().cpu().double().numpy().ravel()
        positions = np.zeros(len(flat), np.int64)
        chosen = flat != 0 if self.zero else np.ones(len(flat), dtype=bool)
        if chosen.any():
            values, found = cluster(flat[chosen], len(self.codebook))
            positions[chosen] = found + self.zero
            self.codebook.copy_(torch.from_numpy(values))
        self.packed.copy_(torch.from_numpy(pack(positions, self.bits)))

    def positions(self) -> Tensor:
        """int64 [number of weights]. Unpacked once, as training looks them up in every step."""
        state = (self.packed._version, self.packed.data_ptr(), self.packed.device)
        if self._positions is None or self._positions[0] != state:
            found = unpack(self.packed.cpu().numpy(), self.bits, self._shape.numel())
            self._positions = (state, torch.from_numpy(found).to(self.packed.device))
        return self._positions[1]


def cluster(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`count` values, ascending, and the position of the one nearest to each of `values`: k-means in one dimension.

    The first guess is spread evenly over the range, which keeps the few large weights that matter most (Han et al.,
    2015, section 3.2). Sorted once, a cluster is an interval, so a round takes `count` binary searches.
    """
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], count)
    for _ in range(_ITERATIONS):
        edges = np.concatenate([[0], np.searchsorted(ordered, _between(centres)), [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        if np.array_equal(means, centres):
            break
        centres = means
    return centres, np.searchsorted(_between(centres), values).astype(np.int64)


def pack(positions: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Numbers below 2^`bits`, one after the other without a gap."""
    return np.packbits((positions[:, None] >> np.arange(bits)) & 1)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.unpackbits(packed, count=count * bits).reshape(count, bits) @ (1 << np.arange(bits))
    return found


def _between(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    middles: NDArray[np.float64] = (centres[1:] + centres[:-1]) / 2
    return middles
