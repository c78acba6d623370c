"""One way of running a model: plain data that is decided once, remembered, and handed to every worker alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine in one of its variants, and why it was taken."""

    # One of offramp_common.engine_names.
    backend: str
    # Of the engine, in its own words; empty: its plain form.
    variant: str = ""
    # Intra-op threads; 0: what the placement says.
    threads: int = 0
    # The folder with what was built ahead of the load; None: nothing was.
    artifacts: Path | None = None
    # Why this one: "asked for by model.toml", or what was measured.
    reason: str = ""
    # Seconds for one full batch, by the label of each choice that was timed.
    measured: Mapping[str, float] = field(default_factory=dict)
    # By label, why others were not taken: missing, failed, inexact, out of time.
    rejected: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.backend} ({self.variant})" if self.variant else self.backend
