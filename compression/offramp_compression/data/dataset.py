"""Labelled examples in memory, and the checks that they must pass before anything is learnt from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from offramp_common.text import quoted
from torch import Tensor

from offramp_compression.errors import DataError

_SHOWN_CLASSES = 5


# No generated equality: arrays do not compare to one truth value. `digest` says whether two data sets are the same.
@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """N labelled examples.

    `inputs` are the arguments of a model's forward in order, each with N as its first dimension: pixels as uint8
    [N, C, H, W], which models get as FP32 in [0, 1]; token ids and masks as int64 [N, L]; anything else as float32.
    `labels` is int64 [N], positions in `class_names`.
    """

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Dataset:
        """The examples at `indices` (int64 [M]), in that order."""
        return Dataset(tuple(array[indices] for array in self.inputs), self.labels[indices], self.class_names)

    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """The rest, and a held-out `fraction` of every class, drawn by `seed`. Both keep the order of this data set.

        Raises DataError for a fraction that is not between 0 and 1 or that leaves one of the two empty.
        """
        if not 0 < fraction < 1:
            raise DataError(f"cannot hold out a fraction of {fraction:g}; expected more than 0 and less than 1")
        held_out = _stratified(self.labels, fraction, seed)
        if held_out.all() or not held_out.any():
            raise DataError(
                f"holding out {fraction:g} of {len(self)} examples leaves one part without any; "
                f"give more examples or another fraction"
            )
        return self.take(np.flatnonzero(~held_out)), self.take(np.flatnonzero(held_out))

    def digest(self) -> str:
        """SHA-256, in hex, of the inputs, the labels and the class names."""
        state = hashlib.sha256(repr(self.class_names).encode())
        for array in (*self.inputs, self.labels):
            state.update(f"{array.dtype.str}{array.shape}".encode())
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()


def check(data: Dataset, where: str, *, every_class: bool = True) -> None:
    """Raise DataError unless `data`, which came from `where`, can be learnt from.

    Complains of no examples, inputs and labels of different lengths, labels that name no class, inputs that are NaN
    or infinite and, with `every_class`, of a class without an example.
    """
    if len(data) == 0:
        raise DataError(f"{where}: there is no example in it; expected at least one of every class")
    for position, array in enumerate(data.inputs):
        _check_input(array, position, len(data), where)
    _check_labels(data, where)
    if every_class:
        _check_classes(data, where)


def aligned(data: Dataset, class_names: tuple[str, ...], where: str) -> Dataset:
    """`data` with its labels counted in the order of `class_names`, which are those of a model.

    Data whose classes have no names but their numbers ("0", "1", ...), none of which the model has, get those of the
    model by position.
    Raises DataError if `data`, which came from `where`, has a class that the model does not have.
    """
    if data.class_names == class_names:
        return data
    numbered = tuple(str(number) for number in range(len(data.class_names)))
    strangers = [name for name in data.class_names if name not in class_names]
    if tuple(strangers) == numbered and len(numbered) <= len(class_names):
        return Dataset(data.inputs, data.labels, class_names)
    if strangers:
        raise DataError(
            f"{where}: the model has no class {quoted(strangers[0])}; expected data of its classes: "
            f"{_shown([quoted(name) for name in class_names])}"
        )
    positions = np.array([class_names.index(name) for name in data.class_names], dtype=np.int64)
    return Dataset(data.inputs, positions[data.labels], class_names)


def tensors(data: Dataset, indices: NDArray[np.int64] | Tensor | None = None) -> tuple[Tensor, ...]:
    """The inputs as a model takes them: pixels as FP32 in [0, 1], integers as int64, all others as FP32.

    With `indices` (int64 [M]), those of the chosen examples only.
    """
    chosen = slice(None) if indices is None else np.asarray(indices)
    return tuple(_as_tensor(array[chosen]) for array in data.inputs)


def _as_tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype == np.uint8:
        return torch.tensor(array).float() / 255
    if np.issubdtype(array.dtype, np.integer):
        return torch.tensor(array, dtype=torch.int64)
    return torch.tensor(array, dtype=torch.float32)


def _stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[random.choice(members, round(fraction * len(members)), replace=False)] = True
    return held_out


def _check_input(array: NDArray[Any], position: int, expected: int, where: str) -> None:
    if len(array) != expected:
        raise DataError(f"{where}: input {position} has {len(array)} examples and there are {expected} labels")
    if not np.issubdtype(array.dtype, np.floating):
        return
    finite = np.isfinite(array).reshape(expected, -1).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise DataError(
            f"{where}: {len(bad)} of {expected} examples hold NaN or infinity in input {position}, the first is "
            f"example {bad[0]}; expected finite numbers, so take these out or repair them"
        )


def _check_labels(data: Dataset, where: str) -> None:
    wrong = np.flatnonzero((data.labels < 0) | (data.labels >= len(data.class_names)))
    if len(wrong):
        raise DataError(
            f"{where}: example {wrong[0]} has label {data.labels[wrong[0]]} ({len(wrong)} labels are out of range); "
            f"expected 0 to {len(data.class_names) - 1}, as there are {len(data.class_names)} class names"
        )


def _check_classes(data: Dataset, where: str) -> None:
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    empty = [quoted(data.class_names[label]) for label in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"{where}: no example of class {_shown(empty)}; give examples of every class, or take the class out of the "
            f"names"
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_CLASSES]) + (", ..." if len(names) > _SHOWN_CLASSES else "")
