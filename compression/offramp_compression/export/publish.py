"""From a network to a version of a model that the server serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp_common.engine_names import AUTO
from offramp_common.text import quoted
from torch import Tensor

from offramp_compression.errors import ExportError
from offramp_compression.export import answers
from offramp_compression.export.formats import FORMATS, Format, write_program
from offramp_compression.export.manifest import write_manifest
from offramp_compression.export.model_toml import BACKENDS, Description, render
from offramp_compression.export.parity import FLOAT, Parity, Tolerance, check_parity
from offramp_compression.export.program import (
    LARGEST_BATCH,
    NONE_VARY,
    Names,
    Signature,
    VariableDimensions,
    capture,
    describe,
)
from offramp_compression.export.repository import check_target, install, staging
from offramp_compression.model_file import save
from offramp_compression.network import Network
from offramp_compression.network_source import NETWORK_FILE
from offramp_compression.weight_sharing import expanded

EAGER = "torch eager"
_PARITY_BATCH = 16

# Writes the model file to a path.
Write = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model goes, and what its `model.toml` says beside what the file says.

    `version` None is the next one, `max_batch_size` None what is there or 16. `manifest` adds `manifest.sha256`.
    `keep_network` writes the network beside the model file, from which it can be trained further; that takes as much
    room again, as nothing is rounded, so that a child's parent is the very network that is served.
    """

    repository: Path
    name: str
    format: Format
    version: int | None = None
    max_batch_size: int | None = None
    # [engine] backend.
    backend: str = AUTO
    manifest: bool = False
    keep_network: bool = True


@dataclass(frozen=True, slots=True)
class Additions:
    """What a version has beside its model file: `files` by name, and `tables` of model.toml, such as "preprocess"."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


NOTHING = Additions()


@dataclass(frozen=True, slots=True)
class Exported:
    """A version that was written: its folder, its model file, and how that compares with the original."""

    folder: Path
    file: Path
    parity: Parity

    @property
    def size_bytes(self) -> int:
        return self.file.stat().st_size


def export_network(
    network: Network,
    inputs: Sequence[Tensor],
    target: Target,
    *,
    variable: VariableDimensions = NONE_VARY,
    tolerance: Tolerance = FLOAT,
    additions: Additions = NOTHING,
) -> Exported:
    """Write `network` as a version of `target`, compared with eager execution on `inputs` (real ones, [N, ...] each).

    `variable` names inputs of which further dimensions vary, as the length of a text does. Raises ExportError if the
    network cannot be exported, the file does not answer as the network does, or the target cannot be written; then
    nothing of it is in the repository. Raises ModelError for a network that is to be kept and that no model file holds.
    """
    check(target)
    names = Names(network.input_names, network.output_names, variable)
    # An engine would look shared weights up again in every call.
    program = capture(expanded(network).module.eval(), inputs, names)
    signature = describe(program, names)
    return publish(
        network, signature, lambda path: write_program(program, names, target.format, path), inputs, target, tolerance,
        additions=additions, kept=network if target.keep_network else None,
    )  # fmt: skip


def publish(
    network: Network,
    signature: Signature,
    write: Write,
    inputs: Sequence[Tensor],
    target: Target,
    tolerance: Tolerance,
    reference: str = EAGER,
    additions: Additions = NOTHING,
    kept: Network | None = None,
) -> Exported:
    """Put a model file that `write` writes into the repository if it answers as `network`'s module does.

    For a file that was made in another way than by `export_network`. Labels and provenance are the network's; `kept` is
    what the version has beside it to be trained further. Raises ExportError and ModelError as `export_network` does.
    """
    check(target)
    with staging(target.repository) as place:
        file = place.version / f"model.{target.format}"
        write(file)
        expected = answers.in_batches(answers.of_module(network.module.eval()), inputs, _PARITY_BATCH)
        actual = answers.in_batches(answers.of_file(file), inputs, _PARITY_BATCH)
        parity = check_parity(expected, actual, tolerance, reference)
        for name, content in additions.files.items():
            (place.version / name).write_bytes(content)
        if kept is not None:
            save(kept, place.version / NETWORK_FILE)
        if target.manifest:
            write_manifest(place.version)
        description = _description(network, signature, target, parity, additions)
        folder = install(place, target.name, target.version, lambda existing: render(description, existing))
    return Exported(folder, folder / file.name, parity)


def check(target: Target) -> None:
    """Raise ExportError for a target that cannot be written: better before hours of work than after them."""
    if target.format not in FORMATS:
        raise ExportError(f"there is no format {quoted(target.format)}; expected {' or '.join(FORMATS)}")
    if target.backend not in BACKENDS[target.format]:
        listed = ", ".join(f'"{backend}"' for backend in BACKENDS[target.format])
        raise ExportError(f"engine {quoted(target.backend)} cannot run a .{target.format} file; one of {listed} can")
    if target.max_batch_size is not None and not 1 <= target.max_batch_size <= LARGEST_BATCH:
        raise ExportError(f"max_batch_size = {target.max_batch_size}: expected 1 to {LARGEST_BATCH}")
    check_target(target.repository, target.name, target.version)


def _description(
    network: Network, signature: Signature, target: Target, parity: Parity, additions: Additions
) -> Description:
    metadata = {**network.provenance.as_metadata(), **parity.as_metadata()}
    return Description(
        target.format, signature, network.class_names, metadata, target.max_batch_size, target.backend, additions.tables
    )
