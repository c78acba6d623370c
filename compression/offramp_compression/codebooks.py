"""Layers whose weights are positions in a codebook, and how to find the codebook that fits best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module

BITS = range(1, 9)
_ITERATIONS = 100


def apply_shared_weights(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Have layers look their weights up in codebooks that are still empty; the edit "shared_weights".

    `arguments` is {"layers": {NAME: {"bits": BITS, "zero": BOOL}}}; see `Lookup`. Raises ModelError for a layer that
    does not exist, that cannot share its weights, or for a number of bits that is none.
    """
    for name, wanted in arguments["layers"].items():
        layer = get_module(module, name)
        refusal = why_not_shared(layer)
        if refusal:
            raise ModelError(f'layer "{name}" cannot share weights: {refusal}')
        if wanted["bits"] not in BITS:
            raise ModelError(f'layer "{name}" cannot have positions of {wanted["bits"]} bits; expected 1 to 8')
        lookup = Lookup(layer.get_parameter("weight"), wanted["bits"], zero=wanted["zero"])
        # Unsafe as the codebook has another shape than the weights.
        parametrize.register_parametrization(layer, "weight", lookup, unsafe=True)
    return module


def why_not_shared(layer: nn.Module) -> str:
    """Empty if `layer` can share its weights."""
    if parametrize.is_parametrized(layer):
        return "it does already"
    if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
        return f"it is a {type(layer).__name__}; expected a convolution or Linear"
    return ""


def is_shared(layer: nn.Module) -> bool:
    return lookup_of(layer) is not None


def lookup_of(layer: nn.Module) -> Lookup | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    (found,) = layer.get_submodule("parametrizations.weight").children()
    return found if isinstance(found, Lookup) else None


@torch.no_grad()
def fill_shared_weights(layer: nn.Module, weight: Tensor) -> None:
    """Give a layer of `apply_shared_weights` the codebook and the positions that come closest to `weight`."""
    lookup = lookup_of(layer)
    assert lookup is not None
    flat = weight.detach().cpu().double().numpy().ravel()
    positions = np.zeros(len(flat), np.int64)
    chosen = flat != 0 if lookup.zero else np.ones(len(flat), dtype=bool)
    codebook = layer.get_parameter("parametrizations.weight.original")
    if chosen.any():
        values, found = cluster(flat[chosen], len(codebook))
        positions[chosen] = found + lookup.zero
        codebook.copy_(torch.from_numpy(values))
    lookup.packed.copy_(torch.from_numpy(pack(positions, lookup.bits)))


class Lookup(nn.Module):
    """The parametrisation of a weight: a codebook, FP32 [2^bits], goes in and the weight comes out.

    With `zero` the first value is 0 for good, so that pruned weights stay pruned, and the codebook holds one less.
    A position takes `bits` bits of the buffer `packed`, uint8.
    """

    packed: Tensor

    def __init__(self, like: Tensor, bits: int, *, zero: bool) -> None:
        super().__init__()
        self.bits = bits
        self.zero = zero
        self._shape = like.shape
        self.register_buffer("packed", torch.zeros(-(-like.numel() * bits // 8), dtype=torch.uint8))
        self._positions: tuple[object, Tensor] | None = None

    def forward(self, codebook: Tensor) -> Tensor:
        values = torch.cat([codebook.new_zeros(1), codebook]) if self.zero else codebook
        return values[self.positions()].view(self._shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """An empty codebook: what the weights were is `fill_shared_weights`' business."""
        return weight.new_zeros(2**self.bits - self.zero)

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
