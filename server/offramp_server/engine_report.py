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
    # Seconds for one batch of each candidate that `auto` timed.
    measured: Mapping[str, float] = field(default_factory=dict)
