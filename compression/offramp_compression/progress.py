"""How far training is, where no bar can be drawn."""

from __future__ import annotations

from offramp_compression.training.history import Epoch


def line(epoch: Epoch) -> str:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in epoch.figures.items())
    return f"epoch {epoch.number}: {figures}"
