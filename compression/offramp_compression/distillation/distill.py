"""Have a student learn from teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from offramp_common.errors import ConfigurationError

from offramp_compression.data.augment import trim_padding
from offramp_compression.data.batches import Augment, Batches
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.distillation.features import FeatureMatching
from offramp_compression.distillation.objective import Distillation
from offramp_compression.distillation.settings import DistillationSettings
from offramp_compression.distillation.teachers import Live, Remembered, RepeatedViews, Teachers, tabulate
from offramp_compression.errors import ModelError
from offramp_compression.network import Network
from offramp_compression.training.learn import Learnt, Watching, learn
from offramp_compression.training.placement import Placement, threads
from offramp_compression.training.settings import TrainingSettings


def distill(
    student: Network,
    teachers: Sequence[Network],
    data: Dataset,
    settings: DistillationSettings,
    training: TrainingSettings,
    *,
    augment: Augment | None = None,
    origin: str = "",
    validate: Dataset | None = None,
    **watching: Unpack[Watching],
) -> Learnt:
    """Train `student`, in place, on `data` and what the teachers say of it.

    `origin` is the student's own digest if it has learnt before. Without augmentation the teachers see each example
    once; with it, every batch, or with `settings.views` each view once.

    Raises ModelError if teachers and student do not go together or a module to match does not exist, ConfigurationError
    for settings that exclude one another, and what `fit` raises.
    """
    _check(student, teachers, settings)
    batches = _batches(data, settings, training, augment)
    features = _matching(student, teachers, data, settings, training)
    asked = _asked(teachers, batches, training, features)
    return learn(
        student, batches, training, Distillation(asked, settings, features), method="distill", origin=origin,
        validate=validate, teachers=tuple(teacher.digest() for teacher in teachers), **watching,
    )  # fmt: skip


def _check(student: Network, teachers: Sequence[Network], settings: DistillationSettings) -> None:
    if not teachers:
        raise ModelError("there is no teacher; give at least one")
    for teacher in teachers:
        if teacher.class_names != student.class_names:
            raise ModelError(
                f"a teacher of the classes {', '.join(teacher.class_names)} cannot teach a student of "
                f"{', '.join(student.class_names)}; they must have the same classes in the same order"
            )
    if settings.features and settings.views:
        raise ConfigurationError("features have to be seen in every batch; leave out either features or views")


def _batches(
    data: Dataset, settings: DistillationSettings, training: TrainingSettings, augment: Augment | None
) -> Batches:
    if settings.views and _varies(augment):
        return RepeatedViews(data, training.batch_size, training.seed, augment, settings.views)
    return Batches(data, training.batch_size, training.seed, augment)


def _asked(
    teachers: Sequence[Network], batches: Batches, training: TrainingSettings, features: FeatureMatching | None
) -> Teachers:
    """The teachers, to be asked as seldom as these batches allow."""
    if features is None and not _varies(batches.augment):
        with threads(training.threads):
            return tabulate(teachers, batches.data, Placement.of(training))
    live = Live(teachers)
    return Remembered(live) if isinstance(batches, RepeatedViews) else live


def _varies(augment: Augment | None) -> bool:
    """Whether an example may look different from one epoch to the next."""
    return augment not in (None, trim_padding)


def _matching(
    student: Network, teachers: Sequence[Network], data: Dataset, settings: DistillationSettings,
    training: TrainingSettings,
) -> FeatureMatching | None:  # fmt: skip
    if not settings.features:
        return None
    example = tensors(data, np.arange(min(2, len(data))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        return FeatureMatching(student.module, teachers[0].module, settings.features, example)
