"""Small data sets, in memory and as files in the formats that people have."""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from offramp_compression.data.dataset import Dataset
from PIL import Image


def images(count: int, classes: int = 3, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 7) -> Dataset:
    """Random pixels; the labels go round the classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    names = tuple(f"class {number}" for number in range(classes))
    return Dataset((pixels,), np.arange(count, dtype=np.int64) % classes, names)


def write_idx(path: Path, array: NDArray[Any]) -> None:
    """Gzipped if `path` ends with .gz."""
    content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, data: Mapping[str, Dataset], suffix: str = ".gz") -> Path:
    """Parts "train" and "t10k"."""
    folder.mkdir(exist_ok=True)
    for part, each in data.items():
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", each.inputs[0][:, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", each.labels.astype(np.uint8))
    return folder


def write_pictures(folder: Path, pictures: Mapping[str, Sequence[NDArray[np.uint8]]], suffix: str = ".png") -> Path:
    """By class; each picture is uint8 [H, W] or [H, W, 3]."""
    for name, arrays in pictures.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(folder / name / f"{number}{suffix}")
    return folder


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """CSV, or tab-separated text if `path` ends with .tsv."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            file.writelines("\t".join(row) + "\n" for row in rows)
        else:
            csv.writer(file).writerows(rows)
    return path
