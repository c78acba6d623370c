"""Stopping when the validation accuracy no longer rises (Prechelt, Early Stopping - But When?, 1998)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Weights = dict[str, Tensor]


class EarlyStopping:
    """Keeps a copy of the best epoch's weights, and says when `patience` epochs in a row were no better.

    A patience of 0 never stops and keeps nothing.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best_weights: Weights | None = None
        self.best_score: float | None = None
        self.best_epoch = 0
        self._waited = 0

    @property
    def done(self) -> bool:
        return 0 < self._patience <= self._waited

    def update(self, epoch: int, score: float, module: nn.Module) -> None:
        if not self._patience:
            return
        if self.best_score is not None and score <= self.best_score:
            self._waited += 1
            return
        self.best_score, self.best_epoch, self._waited = score, epoch, 0
        self._best_weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def restore_best(self, module: nn.Module) -> None:
        """Give `module` the weights of the best epoch, if there was one to compare."""
        if self._best_weights is not None:
            module.load_state_dict(self._best_weights)

    def state(self) -> dict[str, Any]:
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "waited": self._waited,
            "best_weights": self._best_weights,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self._waited, self._best_weights = state["waited"], state["best_weights"]
