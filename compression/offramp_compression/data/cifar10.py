"""CIFAR-10's standard files (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009): the "binary
version" and the "python version". The latter are pickles; they are read without running anything that is in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.cifar10_pickle import read_pickle
from offramp_compression.data.dataset import Dataset
from offramp_compression.data.parts import missing_part
from offramp_compression.errors import DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def holds(path: Path) -> bool:
    return path.is_dir() and _folder(path) is not None


def read(path: Path, part: str) -> Dataset:
    """Pixels uint8 [N, 3, 32, 32]. `path` holds the files, or the folder that the published archive unpacks to.

    Raises DataError if a file is missing or is not what CIFAR-10's are.
    """
    folder = _folder(path)
    if folder is None:
        raise DataError(
            f"{path}: holds no file of CIFAR-10; expected {', '.join(_FOLDERS)} or {_FILES['train'][0]}[.bin]"
        )
    if part not in _FILES:
        raise missing_part(path, part, _FILES)
    pixels, labels = zip(*(_read_file(folder, name) for name in _FILES[part]), strict=True)
    return Dataset((np.concatenate(pixels).reshape(-1, *_SHAPE),), np.concatenate(labels), CLASS_NAMES)


def _folder(path: Path) -> Path | None:
    names = [name for files in _FILES.values() for name in files]
    candidates = (path, *(path / folder for folder in _FOLDERS))
    return next((folder for folder in candidates if _any_file(folder, names)), None)


def _any_file(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for name in names for suffix in ("", ".bin"))


def _read_file(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    binary, pickled = folder / f"{name}.bin", folder / name
    if binary.is_file():
        return _read_binary(binary)
    if pickled.is_file():
        return _read_pickled(pickled)
    raise DataError(f"{folder}: {name}[.bin] is missing; CIFAR-10 has {', '.join(sum(_FILES.values(), ()))}")


def _read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(content) or len(content) % (1 + _PIXELS):
        raise DataError(
            f"{path}: has {len(content)} bytes; expected a multiple of {1 + _PIXELS}, a label and its pixels"
        )
    rows = content.reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _read_pickled(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not {b"data", b"labels"} <= content.keys():
        raise DataError(f'{path}: not a batch of CIFAR-10: expected a dictionary with "data" and "labels"')
    pixels, labels = content[b"data"], content[b"labels"]
    if not _are_labels(labels):
        raise DataError(f'{path}: "labels": expected a list of integers')
    if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels), _PIXELS):
        raise DataError(f'{path}: "data": expected uint8 [{len(labels)}, {_PIXELS}], one row for every label')
    return pixels, np.array(labels, dtype=np.int64)


def _are_labels(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(label) is int and 0 <= label < 256 for label in value)
