"""The work folder: what a step has made, and whether it still is what the step would make."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from offramp_compression.errors import ModelError
from offramp_compression.export.program import Signature, TensorInfo
from offramp_compression.model_file import load, save
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.schema import RecipeTable
from offramp_compression.recipes.workshop import Artefact, Made, Product, Step

_DONE = "done.json"
_NETWORK = "network.safetensors"


class Store:
    """One folder a step: what it made, `done.json` written last, and what it needs to go on if it is not done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, step: Step, fingerprint: str) -> Path:
        """The step's folder, emptied if what is in it belongs to another fingerprint."""
        folder = self._folder / step.name
        marker = folder / "fingerprint"
        if folder.exists() and (not marker.is_file() or marker.read_text() != fingerprint):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(fingerprint)
        return folder

    def find(self, step: Step, fingerprint: str, network: Callable[[str], Network]) -> Product | None:
        """What the step made before with the same fingerprint. ``network`` has what other steps have made."""
        folder = self._folder / step.name
        try:
            done = json.loads((folder / _DONE).read_text())
        except (FileNotFoundError, ValueError):
            return None
        if done["fingerprint"] != fingerprint:
            return None
        return Product(step, fingerprint, folder, _read(folder, done, step, network), done["seconds"])

    def keep(self, step: Step, fingerprint: str, made: Made, seconds: float) -> Product:
        folder = self._folder / step.name
        done: dict[str, Any] = {"fingerprint": fingerprint, "seconds": seconds}
        if isinstance(made, Network):
            save(made, folder / _NETWORK)
        else:
            done["artefact"] = {
                "file": made.path.name,
                "signature": asdict(made.signature),
                "provenance": asdict(made.network.provenance),
            }
        partial = folder / (_DONE + ".partial")
        partial.write_text(json.dumps(done, indent=2))
        os.replace(partial, folder / _DONE)
        return Product(step, fingerprint, folder, made, seconds)


def network_file(product: Product) -> Path:
    return product.folder / _NETWORK


def _read(folder: Path, done: dict[str, Any], step: Step, network: Callable[[str], Network]) -> Made:
    if "artefact" not in done:
        return load(folder / _NETWORK)
    said = done["artefact"]
    provenance = Provenance(**said["provenance"] | {"parents": tuple(said["provenance"]["parents"])})
    return Artefact(
        folder / said["file"], _signature(said["signature"]), replace(network(step.of), provenance=provenance)
    )


def _signature(said: Mapping[str, Any]) -> Signature:
    inputs, outputs = (
        tuple(TensorInfo(each["name"], each["datatype"], tuple(each["dims"])) for each in said[key])
        for key in ("inputs", "outputs")
    )
    return Signature(inputs, outputs)


def fingerprint(step: Step, recipe: RecipeTable, data: RecipeData, parents: Iterable[str], base: Path) -> str:
    """Changes with everything that the step's result depends on, and with the version of this package.

    Raises ModelError if a file that the step reads is not there.
    """
    state = hashlib.sha256()
    facts: dict[str, Any] = {
        "step": {key: value for key, value in _said(step).items() if key not in _NOT_MADE_OF},
        "seed": recipe.seed,
        "data": data.digest,
        "calibration": data.calibration.digest(),
        "parents": list(parents),
        "offramp": version("offramp"),
    }
    if step.bound_to():
        facts["bound_to"] = step.bound_to()
    state.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for path in step.inputs(base):
        state.update(_content(path, step))
    return state.hexdigest()


def _content(path: Path, step: Step) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"step {step.name} needs {path}, which cannot be read: {error.strerror}") from error


# What only says how the result is served or judged.
_NOT_MADE_OF = ("serve", "serve_as", "require", "max_batch_size", "keep_network")


def _said(table: Any) -> dict[str, Any]:
    """What differs from the defaults, so that a field that is added some day leaves what was made before as it is."""
    said = {}
    for each in fields(table):
        value = getattr(table, each.name)
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if value != default:
            said[each.name] = _said(value) if is_dataclass(value) else value
    return said
