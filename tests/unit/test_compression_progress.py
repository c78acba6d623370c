"""Training as lines of text, where there is no terminal to draw a bar on."""

from __future__ import annotations

from offramp_compression.progress import line
from offramp_compression.training.history import Epoch


def test_only_who_is_taught_is_called_a_student() -> None:
    alone = line(Epoch(3, 0.1, {"loss": 0.5, "student": 0.75, "validation_accuracy": 0.7}))
    assert alone == "epoch 3: loss 0.5000, training_accuracy 0.7500, validation_accuracy 0.7000"
    taught = line(Epoch(3, 0.1, {"loss": 0.5, "student": 0.75, "teacher": 0.9}))
    assert taught == "epoch 3: loss 0.5000, student 0.7500, teacher 0.9000"
