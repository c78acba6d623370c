"""Where a network is read from: a model file, or a version of a model in a repository, which has one beside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from offramp_compression.errors import ModelError
from offramp_compression.model_file import load
from offramp_compression.network import Network

# In the folder of a version. The server serves what is exported, and leaves this alone.
NETWORK_FILE = "network.safetensors"
_SERVED = (".pt2", ".onnx")


def open_network(path: Path, *, trusted: Collection[str] = ()) -> Network:
    """The network of a model file, of a version's folder (`models/NAME/2`), or of the highest version of a model's
    folder (`models/NAME`). `trusted` is as for `model_file.load`.

    Raises ModelError as that does, and for a version that has no network beside it.
    """
    return load(network_file(path), trusted=trusted)


def network_file(path: Path) -> Path:
    """The file that `open_network` reads. Raises ModelError for a folder that has none."""
    if path.suffix in _SERVED:
        raise ModelError(
            f"{path} can only be run; name the version's folder, which has the network beside it, or a model file "
            f"(.safetensors)"
        )
    if not path.is_dir():
        return path
    folder = _version(path)
    file = folder / NETWORK_FILE
    if not file.is_file():
        raise ModelError(
            f"{folder} has no {NETWORK_FILE}, so that it can only be run: it is an INT8 model, one stage of a network, "
            f"or was exported without it; start from the model file (.safetensors) that it was made of, or from "
            f"another version"
        )
    return file


def version_name(path: Path) -> str:
    """ "NAME/2" for a version's or a model's folder as `open_network` takes it, "" for a model file."""
    if not path.is_dir():
        return ""
    folder = _version(path).resolve()
    return f"{folder.parent.name}/{folder.name}"


def _version(folder: Path) -> Path:
    if folder.resolve().name.isdecimal() or (folder / NETWORK_FILE).is_file():
        return folder
    versions = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal()]
    if not versions:
        raise ModelError(
            f"{folder} is no model's folder: it has no version; expected one like models/NAME, models/NAME/2, or a "
            f"model file (.safetensors)"
        )
    return max(versions, key=lambda version: int(version.name))
