"""What can go wrong while a student is made. A message says what was wrong and what would be right."""

from __future__ import annotations

from typing import ClassVar

from offramp_common.errors import OfframpError


class CompressionError(OfframpError):
    """Root of this package's errors."""

    reason: ClassVar[str] = "compression"


class DataError(CompressionError):
    """A data set is missing, damaged, or not what its model needs: labels, classes, values, shapes."""

    reason = "data"


class ModelError(CompressionError):
    """A model, a layer of it, or its file cannot be used as asked."""

    reason = "model"


class CheckpointError(CompressionError):
    """A run cannot go on from the checkpoint that is there."""

    reason = "checkpoint"


class TrainingError(CompressionError):
    """A run cannot go on: its loss is no number any more, or there is nothing in it to train."""

    reason = "training"


class ExportError(CompressionError):
    """A model cannot be written to a repository, or what was written does not answer as the original does."""

    reason = "export"
