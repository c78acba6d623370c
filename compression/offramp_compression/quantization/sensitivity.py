"""What each layer loses by being quantised, and which to leave in float for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.export.answers import Answer, of_module
from offramp_compression.network import Network
from offramp_compression.quantization.batches import batches
from offramp_compression.quantization.layers import Int8Model, Quantizer

Logits: TypeAlias = NDArray[np.float32]
# "alone": one layer in integers, all others in float; "without": one in float, all others in integers.
Mode: TypeAlias = Literal["alone", "without"]

# Differences of accuracies are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Quality:
    """`sqnr` is the signal-to-quantisation-noise ratio of the logits in dB: 10 log10(sum x^2 / sum (x - q)^2)."""

    accuracy: float
    sqnr: float


@dataclass(frozen=True, slots=True)
class LayerQuality:
    layer: str
    quality: Quality


class Judge:
    """Compares quantised models with the float network on examples that they were not calibrated on."""

    def __init__(self, network: Network, data: Dataset) -> None:
        self._data = data
        self._expected = logits(of_module(network.module.eval()), data)
        self.accuracy = self._accuracy(self._expected)

    def quality(self, model: Int8Model) -> Quality:
        found = logits(model.answer, self._data)
        return Quality(self._accuracy(found), sqnr(self._expected, found))

    def _accuracy(self, found: Logits) -> float:
        return float((found.argmax(1) == self._data.labels).mean())


def scan(quantizer: Quantizer, judge: Judge, layers: Collection[str], mode: Mode = "alone") -> Iterator[LayerQuality]:
    """Quantise once for each of `layers`, in the order of execution. A single layer has no "without"."""
    ordered = [layer for layer in quantizer.layers if layer in layers]
    for layer in ordered:
        chosen = [layer] if mode == "alone" else [other for other in ordered if other != layer]
        if chosen:
            yield LayerQuality(layer, judge.quality(quantizer.quantize(chosen)))


def most_sensitive_first(scanned: Iterable[LayerQuality], mode: Mode = "alone") -> list[LayerQuality]:
    """A layer that is sensitive leaves much noise when it is quantised alone, and little when it alone is not."""
    return sorted(scanned, key=lambda each: each.quality.sqnr, reverse=mode == "without")


def choose_float_layers(
    quantizer: Quantizer,
    judge: Judge,
    ranked: Sequence[str],
    max_drop: float,
    on_trial: Callable[[Sequence[str], Quality], None] = lambda kept, quality: None,
) -> tuple[tuple[str, ...], Int8Model]:
    """Leave layers in float, one after the other, until accuracy is at most `max_drop` below the float network's.

    `ranked` are the layers to quantise, the most sensitive first; `max_drop` is a share (0.005 is half a point).
    Returns the layers left in float and the model. Raises ModelError if not even one layer can be quantised.
    """
    for count in range(len(ranked)):
        kept = tuple(ranked[:count])
        model = quantizer.quantize(ranked[count:])
        quality = judge.quality(model)
        on_trial(kept, quality)
        if judge.accuracy - quality.accuracy <= max_drop + _ROUNDING:
            return kept, model
    raise ModelError(
        f"no layer can be quantised with at most {max_drop:.2%} of accuracy lost; allow more, calibrate on more "
        f"examples, or fine-tune with quantisation"
    )


def logits(answer: Answer, data: Dataset) -> Logits:
    """The last output for all examples, [N, classes]."""
    return np.concatenate([answer(batch)[-1] for batch in batches(data)]).astype(np.float32)


def sqnr(expected: Logits, found: Logits) -> float:
    """In dB; infinite where nothing differs."""
    noise = float(np.square(expected.astype(np.float64) - found).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    return math.inf if noise == 0 else 10 * math.log10(max(signal, np.finfo(np.float64).tiny) / noise)
