"""What a model file says about itself, whatever its format: plain data between the readers and `assemble`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

UNBOUNDED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension: a fixed `size`, or None and then perhaps a `symbol` and inclusive bounds."""

    size: int | None
    symbol: str | None = None
    bounds: tuple[int, int] | None = None

    def __str__(self) -> str:
        return str(self.size) if self.size is not None else (self.symbol or "-1")


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One input or output. `dimensions` include a batch dimension; None: the file does not say."""

    name: str
    datatype: str
    dimensions: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class SourceModel:
    """One model file, and the files beside it that belong to it."""

    path: Path
    # pt2 | onnx
    format: str
    inputs: tuple[SourceTensor, ...]
    outputs: tuple[SourceTensor, ...]
    external: tuple[Path, ...] = ()
    # Inputs and outputs have names that mean something outside; otherwise only their order does.
    named: bool = False
    # Whether some operator computes on, or rounds to, integers that stand for floats.
    quantized: bool = False
    # Where it comes from, for people: opset, versions.
    provenance: Mapping[str, str] = field(default_factory=dict)
