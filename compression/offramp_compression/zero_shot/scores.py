"""From sentence vectors to scores. All in float32, as the server computes them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]

# Keeps a vector of zeros from becoming one of NaN.
_SMALLEST_NORM = 1e-12


def unit(vectors: NDArray[Any]) -> Vectors:
    """[rows, D], each of them divided by its length."""
    single = vectors.astype(np.float32)
    scaled: Vectors = single / np.maximum(np.linalg.norm(single, axis=-1, keepdims=True), _SMALLEST_NORM)
    return scaled


def class_vectors(prompts: NDArray[Any], templates: int) -> Vectors:
    """[classes * templates, D], the prompts of one class side by side, to [classes, D] of unit length.

    The mean of the prompts' unit vectors, as in Radford et al., Learning Transferable Visual Models From Natural
    Language Supervision (2021), section 3.1.4.
    """
    return unit(unit(prompts).reshape(-1, templates, prompts.shape[-1]).mean(axis=1))


def logits(texts: Vectors, classes: Vectors, temperature: float) -> Vectors:
    """Cosines over the temperature: [rows, classes], both arguments of unit length."""
    scores: Vectors = (texts @ classes.T) / np.float32(temperature)
    return scores
