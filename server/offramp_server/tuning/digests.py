"""What was built, as it was when it was checked: a disk may lose bits of it, and no library looks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# ONNX Runtime's provider for TensorRT writes such files again when it loads.
_WRITTEN_LATER = "TensorrtExecutionProvider_"


def digests_of(artifacts: Path) -> dict[str, str]:
    """SHA-256 of each file by its path in the folder. Raises OSError."""
    return {str(path.relative_to(artifacts)): _digest(path) for path in _files(artifacts)}


def demand_unchanged(artifacts: Path, digests: Mapping[str, Any]) -> None:
    """Raises ValueError for a file that is not what it was, OSError for one that is not there."""
    for name, digest in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or _digest(artifacts / name) != digest:
            raise ValueError(f"{artifacts / name} is not what was built")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(_WRITTEN_LATER):
            yield path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
