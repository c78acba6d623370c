"""Arrays in a .npz file: the model's inputs `x` or `x0`, `x1`, ...; `labels`; `class_names`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset
from offramp_compression.data.parts import holds_part_files, named_classes, part_file
from offramp_compression.errors import DataError

_SUFFIX = ".npz"
_CHANNELS = (1, 3, 4)


def holds(path: Path) -> bool:
    return holds_part_files(path, _SUFFIX)


def read(path: Path, part: str) -> Dataset:
    """uint8 are pixels, [N, C, H, W] or [N, H, W]; other integers become int64 and floating-point numbers float32.

    Without `class_names` in the file, `labels.txt` names the classes, or those of the training part beside it, or their
    numbers. Raises DataError if the file is damaged, needs pickle, or lacks an array.
    """
    file = part_file(path, part, _SUFFIX)
    content = _arrays(file)
    inputs = sorted((name for name in content if re.fullmatch(r"x\d*", name)), key=lambda name: int(name[1:] or 0))
    if not inputs or "labels" not in content:
        present = ", ".join(content) or "none"
        raise DataError(f"{file}: expected arrays x (or x0, x1, ...) and labels, got {present}")
    labels = _labels(content["labels"], file)
    names = _class_names(content, file) or named_classes(file) or _learnt(path, file, labels) or _numbered(labels)
    return Dataset(tuple(_input(content[name], name, file) for name in inputs), labels, names)


def _learnt(path: Path, file: Path, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """The classes of the training part, of which a small test part may lack some."""
    training = path / f"train{_SUFFIX}"
    if file == training or not training.is_file():
        return ()
    content = _arrays(training, ("labels", "class_names"))
    if "class_names" in content:
        return _class_names(content, training) or ()
    others = _labels(content["labels"], training) if "labels" in content else labels
    return _numbered(np.concatenate([labels, others]))


def _arrays(file: Path, wanted: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Those that are `wanted` of those that are there; None: all."""
    try:
        # Opened here, as numpy leaves it open if it is not a whole zip.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: content[name] for name in content if wanted is None or name in wanted}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not a whole .npz of plain arrays ({error}); write it with numpy.savez") from error


def _input(array: NDArray[Any], name: str, file: Path) -> NDArray[Any]:
    if array.ndim == 0:
        raise DataError(f'{file}: "{name}" is a single value; expected an array whose first dimension is the examples')
    if array.dtype == np.uint8:
        return _pixels(array, name, file)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.floating):
        # What does not fit becomes infinite, which the check of the data set reports.
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    raise DataError(f'{file}: "{name}" holds {array.dtype}; expected uint8 pixels, integers or floating-point numbers')


def _pixels(array: NDArray[np.uint8], name: str, file: Path) -> NDArray[np.uint8]:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in _CHANNELS and array.shape[3] in _CHANNELS:
        raise DataError(f'{file}: "{name}" of shape {list(array.shape)} has its channels last; expected [N, C, H, W]')
    return array


def _labels(array: NDArray[Any], file: Path) -> NDArray[np.int64]:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f'{file}: "labels" is {array.dtype} {list(array.shape)}; expected integers [N]')
    return array.astype(np.int64)


def _class_names(content: Mapping[str, NDArray[Any]], file: Path) -> tuple[str, ...] | None:
    if "class_names" not in content:
        return None
    names = content["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) != len(names):
        raise DataError(f'{file}: "class_names": expected a list of strings, every one of them once')
    return tuple(names.tolist())


def _numbered(labels: NDArray[np.int64]) -> tuple[str, ...]:
    # Bounded by the number of labels, as a single wild one must not make a name for every number below it.
    return tuple(str(number) for number in range(min(int(labels.max(initial=0)), len(labels)) + 1))
