"""Where the teachers' logits for a batch come from: the teachers themselves, or what they said before.

Teachers that are asked again and again are what makes distillation slow on a small machine. What they say of an example
that is not augmented is known after one pass (`Tabulated`). Augmented examples are new ones every time, unless a run
repeats its first epochs, view by view (`RepeatedViews`, `Remembered`). Either way the student sees the very logits that
its teachers have for the very input that it is shown itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp_compression.data.batches import Augment, Batch, Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.predict import predict
from offramp_compression.network import Network
from offramp_compression.training.placement import Placement


class Teachers(Protocol):
    """K teachers of one student."""

    @property
    def count(self) -> int: ...

    def logits(self, batch: Batch) -> Tensor:
        """FP32 [K, N, classes], where the batch's labels are, without gradients."""

    def prepare(self, student: nn.Module) -> AbstractContextManager[None]:
        """Entered for as long as `student` learns."""

    def digests(self) -> list[str]:
        """What tells them from other teachers."""


class Live(Teachers):
    """Teachers that look at every batch. Their modules stay in evaluation mode and are not trained."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.modules: list[nn.Module] = [network.module.eval() for network in networks]
        self._digests = [network.digest() for network in networks]

    @property
    def count(self) -> int:
        return len(self.modules)

    # Not inference mode: what is remembered of a teacher takes part in the student's backward pass.
    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        return torch.stack([_logits_of(module(*batch.inputs)) for module in self.modules])

    @contextmanager
    def prepare(self, student: nn.Module) -> Iterator[None]:
        place = Placement.like(student)
        with ExitStack() as stack:
            for module in self.modules:
                stack.enter_context(place.module(module))
            yield

    def digests(self) -> list[str]:
        return self._digests


class Tabulated(Teachers):
    """What teachers, or anyone else, said of every example: logits [K, N, classes], by position in the data set."""

    def __init__(self, logits: NDArray[np.float32], digests: Sequence[str]) -> None:
        self._logits = torch.tensor(logits, dtype=torch.float32)
        self._digests = list(digests)

    @property
    def count(self) -> int:
        return len(self._logits)

    def logits(self, batch: Batch) -> Tensor:
        return self._logits[:, batch.indices].to(batch.labels.device)

    def prepare(self, student: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def digests(self) -> list[str]:
        return self._digests


def tabulate(networks: Sequence[Network], data: Dataset, place: Placement) -> Tabulated:
    """Ask each network once about all of `data`, in order, so that asking again gives the same bits."""
    return Tabulated(
        np.stack([_all_logits(network.module, data, place) for network in networks]),
        [network.digest() for network in networks],
    )


def _all_logits(module: nn.Module, data: Dataset, place: Placement) -> NDArray[np.float32]:
    with place.module(module):
        return predict(module, data)


@dataclass(frozen=True, slots=True, eq=False)
class View(Batch):
    """A batch that comes again. Two with the same `number` are equal in every bit."""

    number: int


class RepeatedViews(Batches):
    """The batches of the first `epochs` epochs, again and again: every example has so many views."""

    def __init__(self, data: Dataset, batch_size: int, seed: int, augment: Augment | None, epochs: int) -> None:
        super().__init__(data, batch_size, seed, augment)
        self._count = epochs * self.steps_per_epoch

    def batch(self, step: int) -> View:
        number = step % self._count
        batch = super().batch(number)
        return View(batch.inputs, batch.labels, batch.indices, number)


class Remembered(Teachers):
    """Teachers that look at each view once. For batches of `RepeatedViews`; takes K * classes floats for each example.

    What is remembered is not part of a checkpoint: a resumed run asks again and, of the same batch, hears the same.
    """

    def __init__(self, teachers: Teachers) -> None:
        self._teachers = teachers
        self._known: dict[int, Tensor] = {}

    @property
    def count(self) -> int:
        return self._teachers.count

    def logits(self, batch: Batch) -> Tensor:
        if not isinstance(batch, View):
            raise ModelError("logits can be remembered for batches of RepeatedViews only; give live teachers otherwise")
        if batch.number not in self._known:
            self._known[batch.number] = self._teachers.logits(batch).cpu()
        return self._known[batch.number].to(batch.labels.device)

    def prepare(self, student: nn.Module) -> AbstractContextManager[None]:
        return self._teachers.prepare(student)

    def digests(self) -> list[str]:
        return self._teachers.digests()


def _logits_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A teacher with exits teaches what its deepest one says."""
    return (output[-1] if isinstance(output, tuple) else output).float()
