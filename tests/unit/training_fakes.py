"""A network and data that train in milliseconds and have what makes resuming hard: BatchNorm, dropout, momentum.

Run as a program, it trains them and kills itself at a given step: `python training_fakes.py CHECKPOINT STEP`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from offramp_compression.data.batches import Batch, Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.training.history import History
from offramp_compression.training.objective import Supervised
from offramp_compression.training.settings import TrainingSettings
from offramp_compression.training.trainer import fit
from torch import Generator, Tensor, nn

CLASSES = ("dark", "bright", "left")
SETTINGS = TrainingSettings(epochs=4, batch_size=16, learning_rate=0.05, threads=1, checkpoint_every=2, patience=3)


def pictures(count: int = 80, seed: int = 0) -> Dataset:
    """Pictures [count, 1, 6, 6] of three classes that can be told apart, though not without fail."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    images = random.integers(0, 160, (count, 1, 6, 6))
    images[labels == 1] += 60
    images[labels == 2, :, :, :3] += 60
    return Dataset((images.astype(np.uint8),), labels, CLASSES)


def network(seed: int = 0, channels: int = 4, classes: int = len(CLASSES)) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Dropout(0.2)),
            nn.Linear(4 * channels, classes),
        )


def noise(inputs: tuple[Tensor, ...], generator: Generator) -> tuple[Tensor, ...]:
    return tuple(tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for tensor in inputs)


class Watched(Supervised):
    """Calls `at` with the number of every step, counted from 1, before its loss is known."""

    def __init__(self, at: Callable[[int], None]) -> None:
        super().__init__()
        self._at = at
        self._step = 0

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        self._step += 1
        self._at(self._step)
        return super().loss(module, batch)


def train(
    module: nn.Module, settings: TrainingSettings = SETTINGS, objective: Supervised | None = None, **options: Any
) -> History:
    data = options.pop("data", pictures())
    batches = Batches(data, settings.batch_size, settings.seed, noise)
    options.setdefault("validate", pictures(40, seed=1))
    return fit(module, batches, settings, objective or Supervised(), **options)


def weights(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


def die_at(step: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == step else None


if __name__ == "__main__":
    train(network(), objective=Watched(die_at(int(sys.argv[2]))), checkpoint=Path(sys.argv[1]))
