"""The loss of a student that learns from teachers and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp_compression.data.batches import Batch
from offramp_compression.distillation.features import FeatureMatching
from offramp_compression.distillation.losses import divergence, logit_error, softened
from offramp_compression.distillation.settings import DistillationSettings
from offramp_compression.distillation.teachers import Teachers
from offramp_compression.errors import ModelError
from offramp_compression.training.objective import Objective


class Distillation(Objective):
    """hard_weight * cross-entropy + (1 - hard_weight) * distance from the teachers + feature_weight * features' error.

    All exits of a student that has several learn the same (Phuong & Lampert, Distillation-Based Training for Multi-Exit
    Architectures, 2019, learns from the deepest instead; see `exits.objectives`).

    Raises ModelError if there are not as many weights as teachers.
    """

    def __init__(
        self, teachers: Teachers, settings: DistillationSettings, features: FeatureMatching | None = None
    ) -> None:
        self._teachers = teachers
        self._settings = settings
        self._features = features
        self._weights = _shares(settings.teacher_weights, teachers.count)
        self._teacher_accuracy = 0.0

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        answer = module(*batch.inputs)
        exits = answer if isinstance(answer, tuple) else (answer,)
        teachers = self._teachers.logits(batch)
        self._note_accuracy(teachers, batch.labels)
        loss = torch.stack([self._mix(logits, teachers, batch.labels) for logits in exits]).mean()
        return loss if self._features is None else loss + self._settings.feature_weight * self._features.error()

    def modules(self) -> Mapping[str, nn.Module]:
        return {} if self._features is None else self._features.regressors

    @contextmanager
    def prepare(self, module: nn.Module) -> Iterator[None]:
        features = nullcontext() if self._features is None else self._features.watching(module)
        with self._teachers.prepare(module), features:
            yield

    def describe(self) -> Mapping[str, Any]:
        return {"objective": "distillation", **asdict(self._settings), "teachers": self._teachers.digests()}

    def live(self) -> Mapping[str, float]:
        return {"teacher": self._teacher_accuracy}

    def _mix(self, student: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
        share = self._settings.hard_weight
        hard = functional.cross_entropy(student.float(), labels, label_smoothing=self._settings.label_smoothing)
        return share * hard + (1 - share) * self._distance(student, teachers)

    def _distance(self, student: Tensor, teachers: Tensor) -> Tensor:
        weights = self._weights.to(teachers.device)
        if self._settings.loss == "mse":
            return logit_error(student, torch.einsum("k,knc->nc", weights, teachers))
        temperature = self._settings.temperature
        return divergence(student, softened(teachers, weights, temperature), temperature)

    def _note_accuracy(self, teachers: Tensor, labels: Tensor) -> None:
        answers = softened(teachers, self._weights.to(teachers.device), 1.0).argmax(1)
        self._teacher_accuracy = (answers == labels).float().mean().item()


def _shares(weights: tuple[float, ...], count: int) -> Tensor:
    if weights and len(weights) != count:
        raise ModelError(f"{len(weights)} weights for {count} teachers; give one for each, or none")
    chosen = torch.tensor(weights or (1.0,) * count, dtype=torch.float32)
    return chosen / chosen.sum()
