"""What is built of a program for AOTInductor: packages, and which of them computes which batch.

A package does not look at the shapes that it is given: a batch of another size reads and writes beyond its memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offramp_server.errors import LoadError

_MANIFEST = "packages.json"


@dataclass(frozen=True, slots=True)
class Package:
    """One file of the folder, and the batch sizes that it computes; (1,) also for a model without batches."""

    file: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    packages: tuple[Package, ...]
    # Positions of the outputs that are in the memory of the package itself, such as a weight.
    lent: tuple[int, ...]
    writes_in_place: bool


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / _MANIFEST).write_text(json.dumps(asdict(manifest)) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises LoadError."""
    try:
        content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        packages = tuple(Package(str(each["file"]), _whole(each["sizes"])) for each in content["packages"])
        return Manifest(packages, _whole(content["lent"]), bool(content["writes_in_place"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{folder / _MANIFEST}: not as aot-inductor builds it ({error}); build it again") from error


def _whole(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(int, values))
