"""What makes a classifier of a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Where a template takes the description of a class.
PLACEHOLDER = "{}"


@dataclass(frozen=True, slots=True)
class ZeroShotSettings:
    """`[zero_shot]` of a model: classes by name, and how scores are computed."""

    # At least two, all different.
    labels: tuple[str, ...]
    # What the encoder gets to read of each class, parallel to `labels`.
    descriptions: tuple[str, ...]
    # Each has the placeholder once; the vector of a class is the mean over them.
    templates: tuple[str, ...]
    # Cosines are divided by it before the softmax.
    temperature: float
    # The encoder's output FP32[D] with a sentence's vector.
    embedding: str
    # Names of the outputs that clients see, both FP32[labels].
    logits: str
    probabilities: str

    def describe(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The descriptions of these labels; one that is not configured describes itself."""
        known = dict(zip(self.labels, self.descriptions, strict=True))
        return tuple(known.get(label, label) for label in labels)

    def prompts(self, description: str) -> list[str]:
        return [template.replace(PLACEHOLDER, description) for template in self.templates]
