"""Steps that go on from what another network knows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from offramp_compression.distillation.distill import distill
from offramp_compression.distillation.settings import DistillationSettings
from offramp_compression.finetune import fine_tune
from offramp_compression.network import Network
from offramp_compression.new_network import new_network
from offramp_compression.recipes.steps.learning import Augmentation, StepTraining, settings_for, watching
from offramp_compression.recipes.workshop import Step, Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillStep(Step):
    """`kind = "distill"`: a new student, or the network of step `of`, learns from the networks of other steps."""

    kind: Literal["distill"]
    teachers: tuple[str, ...]
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    training: StepTraining = field(default_factory=StepTraining)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def parents(self) -> tuple[str, ...]:
        return (*((self.of,) if self.of else ()), *self.teachers)

    def problem(self) -> str:
        if bool(self.of) == bool(self.architecture):
            return 'give the student an "architecture", or the step "of" which it goes on from'
        return "" if self.teachers else 'name at least one step in "teachers"'

    def make(self, workshop: Workshop) -> Network:
        settings = settings_for(self.training, workshop)
        data = workshop.data.train
        student, origin = self._student(workshop, settings.seed)
        return distill(
            student, [workshop.network(name) for name in self.teachers], data, self.distillation, settings,
            augment=self.augmentation.of(data), origin=origin, validate=workshop.data.validation,
            **watching(workshop, self.name),
        ).network  # fmt: skip

    def _student(self, workshop: Workshop, seed: int) -> tuple[Network, str]:
        if self.of:
            before = workshop.network(self.of)
            return replace(before, module=copy.deepcopy(before.module)), before.digest()
        data = workshop.data
        return new_network(self.architecture, self.arguments, data.train, seed, vocabulary=data.vocabulary), ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneStep(Step):
    """`kind = "fine-tune"`: the network of step `of` learns this recipe's task, with a new head if it had another."""

    kind: Literal["fine-tune"]
    # "all", "head", or how many of the last blocks: see `freezing.freeze`.
    train: str = "all"
    # The classifier's module; left out: found.
    head: str = ""
    label_smoothing: float = 0.0
    training: StepTraining = field(default_factory=StepTraining)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def problem(self) -> str:
        return "" if self.of else 'name the step "of" which it goes on from'

    def make(self, workshop: Workshop) -> Network:
        settings = settings_for(self.training, workshop)
        data = workshop.data.train
        return fine_tune(
            workshop.network(self.of), data, settings, train=self.train, head=self.head or None,
            augment=self.augmentation.of(data), label_smoothing=self.label_smoothing,
            validate=workshop.data.validation, **watching(workshop, self.name),
        ).network  # fmt: skip
