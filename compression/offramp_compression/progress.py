"""How far training is, where no bar can be drawn."""

from __future__ import annotations

from offramp_compression.training.history import Epoch


def line(epoch: Epoch) -> str:
    """One line with every figure. Where nobody teaches, nobody is called a student."""
    taught = "teacher" in epoch.figures
    named = {"training_accuracy" if name == "student" and not taught else name: value
             for name, value in epoch.figures.items()}  # fmt: skip
    return f"epoch {epoch.number}: {', '.join(f'{name} {value:.4f}' for name, value in named.items())}"
