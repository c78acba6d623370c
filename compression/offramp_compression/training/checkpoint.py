"""A run's state on disk: written atomically, read without unpickling code, refused where it belongs to another run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from offramp_compression.errors import CheckpointError

_FORMAT = 1


def require_writable(path: Path) -> None:
    """Raise CheckpointError if no checkpoint can be written to `path`: better before the first epoch than after it."""
    probe = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with probe.open("wb"):
            pass
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}; choose another place") from error


def write(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`, or leave the one that is there if this process dies meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"format": _FORMAT, "identity": dict(identity), "state": dict(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state in the checkpoint at `path`, its tensors on the CPU.

    Raises CheckpointError if the file is damaged or of a run that was set up otherwise.
    """
    content = _content(path)
    differences = list(_differences(content["identity"], identity))
    if differences:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(differences)}; delete it to begin again, "
            "or give the same settings and data to go on"
        )
    state: dict[str, Any] = content["state"]
    return state


def _content(path: Path) -> dict[str, Any]:
    # torch.load's own message for a file that is none of its own is about pickle and helps nobody.
    if not is_zipfile(path):
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged; delete it to begin again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever torch stumbles over in a damaged archive: it raises half a dozen unrelated types.
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}); delete it to begin again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of offramp; delete it to begin again")
    return content


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            yield f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
