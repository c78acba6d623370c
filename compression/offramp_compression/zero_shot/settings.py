"""What makes a classifier of a sentence encoder: the classes in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offramp_common.text import quoted

from offramp_compression.errors import DataError

# Where a template takes the description of a class.
PLACEHOLDER = "{}"
DEFAULT_TEMPERATURE = 0.05


@dataclass(frozen=True, slots=True)
class ZeroShotSettings:
    """`[zero_shot]` of a model.toml.

    `descriptions` are parallel to `labels`; none: the labels describe themselves. The vector of a class is the mean
    over the `templates`. Cosines are divided by `temperature` before the softmax. Raises DataError for what the server
    would not accept.
    """

    labels: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    templates: tuple[str, ...] = (PLACEHOLDER,)
    temperature: float = DEFAULT_TEMPERATURE

    def __post_init__(self) -> None:
        if len(set(self.labels)) < max(2, len(self.labels)) or not all(label.strip() for label in self.labels):
            raise DataError(f"labels {_shown(self.labels)}: expected at least two, all different and none empty")
        if self.descriptions and len(self.descriptions) != len(self.labels):
            raise DataError(f"{len(self.descriptions)} descriptions for {len(self.labels)} labels; give one for each")
        wrong = [template for template in self.templates if template.count(PLACEHOLDER) != 1]
        if wrong or not self.templates:
            raise DataError(f'template {_shown(wrong)}: expected at least one, each with "{PLACEHOLDER}" once')
        if not self.temperature > 0:
            raise DataError(f"temperature {self.temperature:g}: expected a number above 0")

    def prompts(self) -> list[str]:
        """What the encoder reads: the prompts of one class side by side, in the order of the labels."""
        described = self.descriptions or self.labels
        return [template.replace(PLACEHOLDER, description) for description in described for template in self.templates]

    def as_table(self) -> dict[str, Any]:
        table: dict[str, Any] = {"labels": list(self.labels)}
        if self.descriptions:
            table["descriptions"] = list(self.descriptions)
        return {**table, "templates": list(self.templates), "temperature": self.temperature}


def _shown(texts: Sequence[str]) -> str:
    return ", ".join(map(quoted, texts)) or "(none)"
