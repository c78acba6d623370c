"""What a training run minimises."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from offramp_compression.data.batches import Batch


class Objective(Protocol):
    """Inherit from it: all but `loss` have defaults."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The scalar to minimise. It is called once a step, under autocast where that is on."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Further modules that are trained along with the network and thrown away afterwards, by name."""
        return {}

    def prepare(self, module: nn.Module) -> AbstractContextManager[None]:
        """Entered for as long as the run trains `module`, which is on its device by then."""
        return nullcontext()

    def describe(self) -> Mapping[str, Any]:
        """Everything that the loss depends on, as JSON-able values: a run resumes only with an equal description."""
        return {"objective": type(self).__qualname__}

    def live(self) -> Mapping[str, float]:
        """Further figures of the last batch, such as the teacher's accuracy, for the progress bar and TensorBoard."""
        return {}


class Supervised(Objective):
    """Cross-entropy with the labels; `label_smoothing` as in Szegedy et al., Rethinking Inception (2015)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        logits = module(*batch.inputs)
        return nn.functional.cross_entropy(logits.float(), batch.labels, label_smoothing=self._label_smoothing)

    def describe(self) -> Mapping[str, Any]:
        return {"objective": "supervised", "label_smoothing": self._label_smoothing}
