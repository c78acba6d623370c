"""Labelled texts in .csv or .tsv files with the columns "text" and "label".

CSV is quoted as RFC 4180 has it. TSV is not quoted at all, so that a quotation mark in a text is just that.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from offramp_common.text import did_you_mean, quoted

from offramp_compression.data.parts import LABELS_FILE, holds_part_files, named_classes, part_file
from offramp_compression.data.text import TextData
from offramp_compression.errors import DataError

_DIALECTS: dict[str, dict[str, Any]] = {
    "csv": {"delimiter": ",", "strict": True},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
_COLUMNS = ("text", "label")


def holds_csv(path: Path) -> bool:
    return holds_part_files(path, ".csv")


def holds_tsv(path: Path) -> bool:
    return holds_part_files(path, ".tsv")


def read(path: Path, part: str, format: str) -> TextData:
    """The texts of one part. Classes are those of `labels.txt`, or all labels of all parts in alphabetical (numbers: in
    numerical) order.

    Raises DataError if there is no such part, if a column is missing, or for a row with another number of fields, an
    empty text, or a label that is empty or not in `labels.txt`.
    """
    file = part_file(path, part, f".{format}")
    rows = list(_rows(file, format))
    names = named_classes(path)
    if names is None:
        others = [other for other in path.glob(f"*.{format}") if other != file] if path.is_dir() else []
        found = {label for _, label in rows} | {label for other in others for _, label in _rows(other, format)}
        names = _ordered(found)
    positions = {name: position for position, name in enumerate(names)}
    _require_known([label for _, label in rows], positions, file)
    labels = np.array([positions[label] for _, label in rows], dtype=np.int64)
    return TextData(tuple(text for text, _ in rows), labels, names)


def write_tsv(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write texts and their labels as `read` reads them, whole or not at all. White space becomes single spaces."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, **_DIALECTS["tsv"], quotechar=None, lineterminator="\n")
        writer.writerows([_COLUMNS, *((" ".join(text.split()), label) for text, label in rows)])
    os.replace(partial, path)


def _rows(file: Path, format: str) -> Iterator[tuple[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, **_DIALECTS[format])
            yield from _fields(reader, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not {format.upper()}: {error}") from error


def _fields(reader: Any, file: Path) -> Iterator[tuple[str, str]]:
    header = [name.strip().lower() for name in next(reader, [])]
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{file}: has no column {quoted(missing[0])}; expected a first line that names the columns text and label"
        )
    text, label = (header.index(name) for name in _COLUMNS)
    for row in filter(None, reader):
        if len(row) != len(header):
            raise DataError(f"{file}, line {reader.line_num}: has {len(row)} fields; expected {len(header)}")
        if not row[text].strip() or not row[label].strip():
            raise DataError(f"{file}, line {reader.line_num}: expected a text and a label, got an empty one")
        yield row[text], row[label].strip()


def _ordered(labels: set[str]) -> tuple[str, ...]:
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _require_known(labels: Sequence[str], known: dict[str, int], file: Path) -> None:
    for position, label in enumerate(labels):
        if label not in known:
            raise DataError(
                f"{file}, row {position + 1}: label {quoted(label)} is not in {LABELS_FILE}{did_you_mean(label, known)}"
            )
