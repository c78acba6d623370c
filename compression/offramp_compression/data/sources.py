"""Data sets as they lie on disk."""

from __future__ import annotations

from pathlib import Path

from offramp_compression.data.dataset import Dataset
from offramp_compression.data.text import TextData


def open_dataset(
    path: Path, part: str = "train", format: str | None = None, *, image_size: int | None = None
) -> Dataset:
    raise NotImplementedError


def open_texts(path: Path, part: str = "train", format: str | None = None) -> TextData:
    raise NotImplementedError


def open_encoded(
    path: Path, part: str, format: str | None, *, tokenizer: Path | None, max_length: int, image_size: int | None
) -> Dataset:
    raise NotImplementedError
