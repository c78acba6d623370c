"""What executes a loaded model: plain data that workers write and everybody who describes a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What was really chosen. It is shown in ModelConfig, in the log and in a metric."""

    backend: str
    device: str
    precision: str
    threads: int
    # Why this one: "asked for by model.toml", or what was measured.
    reason: str
    # Seconds for one full batch of each candidate that was timed, by its label.
    measured: Mapping[str, float] = field(default_factory=dict)
    # Of the engine, in its own words; empty: its plain form.
    variant: str = ""
    # Candidates that were not taken, by label, and why.
    rejected: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.backend} ({self.variant})" if self.variant else self.backend
