"""Which layers can be quantised, and finding those that a name stands for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offramp_common.text import quoted
from torch import nn

from offramp_compression.errors import ModelError
from offramp_compression.export.answers import Answer
from offramp_compression.export.program import Signature
from offramp_compression.modules import get_module

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_WEIGHTED_WORDS = "Conv1d, Conv2d and Linear"


@dataclass(frozen=True, slots=True)
class Int8Model:
    """A quantised network that can be asked and written. `layers` are those that it computes in integers."""

    layers: tuple[str, ...]
    answer: Answer
    write: Callable[[Path], None]


class Quantizer(Protocol):
    """A network with its calibration set, ready to be quantised in part or as a whole."""

    @property
    def signature(self) -> Signature:
        """Of the files that its models write."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that it can quantise, in the order of execution."""

    @property
    def refusals(self) -> Mapping[str, str]:
        """Why it cannot quantise the others."""

    def quantize(self, layers: Collection[str]) -> Int8Model:
        """Quantise exactly `layers`, a part of its own."""


def weighted_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of all layers that hold the weights of a convolution or of a matrix product."""
    return tuple(name for name, child in module.named_modules() if isinstance(child, WEIGHTED))


def select(module: nn.Module, names: Iterable[str], quantizer: Quantizer) -> frozenset[str]:
    """The layers that `names` stand for: a layer for itself, any other module for the layers in it.

    Raises ModelError for a name that does not exist or stands for nothing that can be quantised.
    """
    return frozenset(layer for name in names for layer in _layers_in(module, name, quantizer))


def _layers_in(module: nn.Module, name: str, quantizer: Quantizer) -> list[str]:
    found = get_module(module, name)
    inside = [layer for layer in quantizer.layers if layer == name or layer.startswith(f"{name}.")]
    if not inside:
        reason = quantizer.refusals.get(name) or f"it is a {type(found).__name__}, and only {_WEIGHTED_WORDS} can be"
        raise ModelError(f"layer {quoted(name)} cannot be quantised: {reason}{_hint(quantizer.layers)}")
    return inside


def _hint(layers: Collection[str]) -> str:
    return f"; those that can be are {', '.join(map(quoted, list(layers)[:10]))}" if layers else ""
