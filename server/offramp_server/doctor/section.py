"""What `offramp doctor` has to say about one subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    # Label and text of each line.
    lines: tuple[tuple[str, str], ...]
    # The same for programs: values that JSON has.
    facts: Mapping[str, Any]
    # What keeps a server from starting; each says what would be right.
    problems: tuple[str, ...] = ()
    # What it can start without, but somebody may want.
    warnings: tuple[str, ...] = ()


def gibibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"
