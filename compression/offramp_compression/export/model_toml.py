"""`model.toml` of a model that is written, or gets a new version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp_common.engine_names import AUTO, ENGINES
from offramp_common.toml_schema import read_toml

from offramp_compression.export.formats import Format
from offramp_compression.export.program import Signature, TensorInfo
from offramp_compression.export.toml_text import toml_text

DEFAULT_MAX_BATCH_SIZE = 16
# Which `[engine] backend` runs which format.
BACKENDS: Mapping[Format, tuple[str, ...]] = {"pt2": (AUTO, *ENGINES["pt2"]), "onnx": (AUTO, *ENGINES["onnx"])}
_HEADER = "# Written by offramp. Settings that you change here are kept when it writes a new version.\n\n"
# Keys of [metadata] that belong to whoever writes a version.
_OURS = ("provenance.", "parity.")


@dataclass(frozen=True, slots=True)
class Description:
    """What there is to say of one model file. `max_batch_size` None: what is there already, or the default."""

    format: Format
    signature: Signature
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]
    max_batch_size: int | None = None
    backend: str = AUTO
    # Further tables of the file, such as "preprocess"; they replace what is there under the same key.
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def render(description: Description, existing: Path | None = None) -> str:
    """The text of the file. What an operator has set in the `existing` one stays, unless it is about the model file
    itself. Raises ConfigurationError if `existing` cannot be read."""
    before = read_toml(existing) if existing is not None and existing.is_file() else {}
    kept = {key: value for key, value in before.items() if key not in ("inputs", "outputs", "engine", "metadata")}
    labels = description.class_names
    return _HEADER + toml_text(
        {
            "max_batch_size": _max_batch_size(description, before),
            **{key: value for key, value in kept.items() if key != "max_batch_size"},
            **description.tables,
            "inputs": [_table(tensor, ()) for tensor in description.signature.inputs],
            "outputs": [_table(tensor, labels) for tensor in description.signature.outputs],
            **_engine(description, before.get("engine", {})),
            "metadata": {**_foreign(before.get("metadata", {})), **description.metadata},
        }
    )


def _max_batch_size(description: Description, before: Mapping[str, Any]) -> int:
    if description.max_batch_size is not None:
        return description.max_batch_size
    return int(before.get("max_batch_size", DEFAULT_MAX_BATCH_SIZE))


def _table(tensor: TensorInfo, labels: Sequence[str]) -> dict[str, Any]:
    table: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "dims": list(tensor.dims)}
    return {**table, "labels": list(labels)} if labels and tensor.dims == (len(labels),) else table


def _engine(description: Description, before: Mapping[str, Any]) -> dict[str, Any]:
    """A backend that cannot run this file is not kept."""
    engine = {key: value for key, value in before.items() if key != "backend"}
    backend = description.backend
    if backend == AUTO and before.get("backend") in BACKENDS[description.format]:
        backend = before["backend"]
    if backend != AUTO:
        engine = {"backend": backend, **engine}
    return {"engine": engine} if engine else {}


def _foreign(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not key.startswith(_OURS)}
