"""Vectors of classes, and how texts are scored against them. All of it in float32."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]

# Keeps a vector of zeros from becoming one of NaN.
_SMALLEST_NORM = 1e-12


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """[rows, D], each of them divided by its length."""
    single = vectors.astype(np.float32)
    units: Vectors = single / np.maximum(np.linalg.norm(single, axis=-1, keepdims=True), _SMALLEST_NORM)
    return units


def class_vectors(prompts: npt.NDArray[Any], templates: int) -> Vectors:
    """[classes * templates, D], the prompts of one class side by side, to [classes, D].

    The vector of a class is the mean of its prompts' unit vectors, as CLIP's prompt ensembling has it (Radford et al.
    2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4).
    """
    return unit(unit(prompts).reshape(-1, templates, prompts.shape[-1]).mean(axis=1))


def logits(texts: Vectors, classes: Vectors, temperature: float) -> Vectors:
    """Cosines over the temperature: [rows, classes], both arguments of unit length."""
    scores: Vectors = (texts @ classes.T) / np.float32(temperature)
    return scores


def softmax(scores: Vectors) -> Vectors:
    """Over the last dimension."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Vectors = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


class VectorCache:
    """Vectors by description, the least recently used ones forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[str, Vectors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, description: str) -> Vectors | None:
        vector = self._vectors.get(description)
        if vector is not None:
            self._vectors.move_to_end(description)
        return vector

    def put(self, description: str, vector: Vectors) -> None:
        self._vectors[description] = vector
        self._vectors.move_to_end(description)
        while len(self._vectors) > self._capacity:
            self._vectors.popitem(last=False)
