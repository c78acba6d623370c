"""One run: what a step does, what an epoch's end does, and all that must be remembered to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp_compression.data.batches import Batch, Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import CheckpointError, TrainingError
from offramp_compression.evaluation.predict import predict
from offramp_compression.training import random_state
from offramp_compression.training.early_stopping import EarlyStopping
from offramp_compression.training.history import Epoch, History, RunningMeans
from offramp_compression.training.modes import train_mode
from offramp_compression.training.objective import Objective
from offramp_compression.training.optimizer import make_optimizer
from offramp_compression.training.placement import Placement
from offramp_compression.training.precision import Precision
from offramp_compression.training.schedule import factor
from offramp_compression.training.settings import TrainingSettings


class Run:
    """A network, its optimiser and where the two have got to. `step` counts the steps that are done."""

    def __init__(
        self, module: nn.Module, train: Batches, settings: TrainingSettings, objective: Objective,
        extras: nn.ModuleDict, placement: Placement, validate: Dataset | None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.total = settings.epochs * train.steps_per_epoch
        self.step = 0
        self.means = RunningMeans()
        self.history = History()
        self._module = module
        self._train = train
        self._objective = objective
        self._extras = extras
        self._placement = placement
        self._validate = validate
        self._optimizer = make_optimizer([*module.parameters(), *extras.parameters()], settings)
        self._precision = Precision(settings.mixed_precision, placement.device)
        self._stopping = EarlyStopping(settings.patience)
        train_mode(module)

    @property
    def done(self) -> bool:
        return self.step >= self.total or self._stopping.done

    @property
    def at_end_of_epoch(self) -> bool:
        return self.step % self._train.steps_per_epoch == 0

    @property
    def epoch(self) -> int:
        """The epoch that the last step belongs to, counted from 1."""
        return max(self.step - 1, 0) // self._train.steps_per_epoch + 1

    @property
    def progress(self) -> str:
        return f"{self.epoch}/{self.settings.epochs}"

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        settings = self.settings
        return settings.learning_rate * factor(settings.schedule, self.step, self.total, settings.warmup)

    def train_step(self) -> None:
        batch = self._placement.batch(self._train.batch(self.step))
        self._set_learning_rate()
        self._optimizer.zero_grad(set_to_none=True)
        loss, accuracy = self._forward(batch)
        value = self._finite(loss)
        self._backward(loss)
        self.step += 1
        self.means.update({"loss": value, **accuracy, **self._objective.live()})

    def end_epoch(self) -> Epoch:
        """Validate, remember the epoch, and note whether it was the best."""
        figures = {**self.means.means, **self._validation()}
        epoch = Epoch(self.epoch, self.learning_rate, figures)
        self.history.epochs.append(epoch)
        if self._validate is not None:
            self._stopping.update(epoch.number, figures["validation_accuracy"], self._module)
        train_mode(self._module)
        return epoch

    def finish(self) -> History:
        """Leave the module in evaluation mode, with the weights of the best epoch if patience was to choose one."""
        self._stopping.restore_best(self._module)
        self._module.eval()
        self.history.best_epoch = self._stopping.best_epoch or self.epoch
        self.history.stopped_early = self.step < self.total
        return self.history

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "module": self._module.state_dict(),
            "extras": self._extras.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._precision.scaler.state_dict(),
            "early_stopping": self._stopping.state(),
            "means": self.means.state(),
            "history": self.history.state(),
            "random": random_state.capture(self._placement.device),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises CheckpointError if it does not fit the network."""
        try:
            self._module.load_state_dict(state["module"])
            self._extras.load_state_dict(state["extras"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._precision.scaler.load_state_dict(state["scaler"])
            self._stopping.load(state["early_stopping"])
            self.means.load(state["means"])
            self.history.load(state["history"])
            random_state.restore(state["random"], self._placement.device)
            self.step = state["step"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this network: {error}; delete it to begin again"
            ) from error

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        seen: list[Any] = []
        # The objective calls the network as it likes; its answers are read in passing.
        hook = self._module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            with self._precision.autocast():
                loss = self._objective.loss(self._module, batch)
        finally:
            hook.remove()
        return loss, _accuracy(seen[-1], batch.labels) if seen else {}

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if math.isfinite(value):
            return value
        settings = self.settings
        ways = [f"lower learning_rate (it is {settings.learning_rate:g})"]
        ways += [] if settings.max_grad_norm else ["clip gradients with max_grad_norm, such as 1"]
        ways += [] if self._precision.name == "off" else [f"turn mixed_precision off (it is {self._precision.name})"]
        raise TrainingError(
            f"the loss became {value} in step {self.step + 1} (epoch {self.epoch}); {', or '.join(ways)}"
        )

    def _backward(self, loss: Tensor) -> None:
        scaler = self._precision.scaler
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.settings.max_grad_norm:
            scaler.unscale_(self._optimizer)
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        scaler.step(self._optimizer)
        scaler.update()

    def _set_learning_rate(self) -> None:
        rate = self.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _validation(self) -> dict[str, float]:
        if self._validate is None:
            return {}
        logits = predict(self._module, self._validate)
        labels = self._validate.labels
        loss = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
        return {"validation_accuracy": float(np.mean(logits.argmax(1) == labels)), "validation_loss": loss.item()}


def _accuracy(output: Any, labels: Tensor) -> dict[str, float]:
    """Of the last exit, if there are several; nothing where the output is no logits of these labels."""
    logits = output[-1] if isinstance(output, tuple) else output
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        return {}
    return {"student": (logits.detach().argmax(1) == labels).float().mean().item()}
