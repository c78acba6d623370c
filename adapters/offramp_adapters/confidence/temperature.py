"""Temperature scaling: one number that makes a network as sure as it is right (Guo et al., "On Calibration of Modern
Neural Networks", 2017)."""

from __future__ import annotations

import numpy as np
from open_inference.tensor import Array

from offramp_adapters.routes.deciding import LOGITS, Scale

# Anything outside makes a network either certain or clueless whatever it has seen.
TEMPERATURES = (0.01, 100.0)


def log_probabilities(values: Array, scale: Scale, temperature: float = 1.0) -> Array:
    """Natural logarithms of the probabilities that `values` on that scale stand for, as float64, normalised over the
    last dimension. An item with NaN or without any probability becomes NaN. A temperature above 1 makes less sure."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.asarray(values, np.float64)
        if scale != LOGITS:
            logits = np.log(logits)
        shifted = (logits - logits.max(axis=-1, keepdims=True)) / temperature
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
