"""What the formats have in common: parts that are files of a folder, and the names of classes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from offramp_common.text import quoted

from offramp_compression.errors import DataError

LABELS_FILE = "labels.txt"


def holds_part_files(path: Path, suffix: str) -> bool:
    if path.is_file():
        return path.suffix.lower() == suffix
    return path.is_dir() and any(path.glob(f"*{suffix}"))


def part_file(path: Path, part: str, suffix: str) -> Path:
    """`path` itself if it is a file, or else the part's file in it. Raises DataError with the parts that are there."""
    if path.is_file():
        return path
    wanted = path / f"{part}{suffix}"
    if not wanted.is_file():
        raise missing_part(path, part, [file.stem for file in path.glob(f"*{suffix}")])
    return wanted


def missing_part(path: Path, part: str, present: Collection[str]) -> DataError:
    shown = ", ".join(quoted(name) for name in sorted(present)) or "none"
    return DataError(f"{path}: has no part {quoted(part)}; its parts: {shown}")


def named_classes(path: Path) -> tuple[str, ...] | None:
    """The lines of `labels.txt` in the folder `path`, or beside the file `path`; None if there is no such file.

    Raises DataError if it is empty, not UTF-8, has an empty line in the middle or a name twice.
    """
    file = (path if path.is_dir() else path.parent) / LABELS_FILE
    if not file.is_file():
        return None
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not names or "" in names:
        raise DataError(f"{file}: expected the name of one class on each line, got an empty one")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{file}: names class {quoted(name)} more than once; expected every class once")
    return names
