"""A family's models in the repository: each format once, and again only where the model has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offramp_common.toml_schema import read_toml
from torch import Tensor

from offramp_compression.data.dataset import tensors
from offramp_compression.exits.network import MultiExit
from offramp_compression.exits.segments import export_segments
from offramp_compression.export.formats import torch_of
from offramp_compression.export.parity import INT8
from offramp_compression.export.preparing import preparing
from offramp_compression.export.program import text_lengths
from offramp_compression.export.publish import Additions, Exported, Target, export_network, publish
from offramp_compression.export.repository import MODEL_TOML
from offramp_compression.network import Network
from offramp_compression.quantization.quantize import REFERENCE
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.run import Recipe
from offramp_compression.recipes.schema import FileFormat
from offramp_compression.recipes.workshop import Artefact, Product
from offramp_compression.weight_sharing import expanded

# Real inputs on which an exported model has to answer as the network does.
_PARITY_EXAMPLES = 64
_FINGERPRINT = "recipe_fingerprint"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Served:
    """A model of the repository and the step that has made it."""

    name: str
    step: str
    folder: Path


def publish_family(
    recipe: Recipe, products: Mapping[str, Product], repository: Path, data: RecipeData, say: Callable[[str], None]
) -> list[Served]:
    """Write what the steps want served and what is not there yet. Raises ExportError."""
    served = []
    for product in products.values():
        for name, format in product.step.served(recipe.table.name):
            target = _target(repository, name, format, product)
            fingerprint = _fingerprint(target, product)
            if _is_there(repository / name, fingerprint):
                say(f"{name}: in {repository} already")
            else:
                for exported in _publish(product, target, data, fingerprint):
                    say(f"{exported.file}: {exported.parity}")
            served.append(Served(name, product.step.name, repository / name))
    return served


def _target(repository: Path, name: str, format: FileFormat, product: Product) -> Target:
    step = product.step
    return Target(repository, name, format, max_batch_size=step.max_batch_size, keep_network=step.keep_network)


def _fingerprint(target: Target, product: Product) -> str:
    """Of what is served and how. Not of what model.toml says: that is the operator's."""
    facts = {
        "product": product.fingerprint,
        "format": target.format,
        "max_batch_size": target.max_batch_size,
        "keep_network": target.keep_network,
        **torch_of(target.format),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _is_there(folder: Path, fingerprint: str) -> bool:
    file = folder / MODEL_TOML
    settings = read_toml(file) if file.is_file() else {}
    return bool(settings.get("metadata", {}).get(f"provenance.settings.{_FINGERPRINT}") == fingerprint)


def _publish(product: Product, target: Target, data: RecipeData, fingerprint: str) -> list[Exported]:
    examples = data.validation
    inputs = tensors(examples, np.arange(min(_PARITY_EXAMPLES, len(examples))))
    mark = {_FINGERPRINT: fingerprint}
    if isinstance(product.made, Artefact):
        return [_publish_artefact(product.made, product.made.network.described(settings=mark), inputs, target, data)]
    network = product.made.described(settings=mark)
    variable = text_lengths(network.input_names, inputs)
    if isinstance(network.module, MultiExit):
        return export_segments(expanded(network), inputs, target, variable=variable, additions=_preparing(inputs, data))
    return [export_network(network, inputs, target, variable=variable, additions=_preparing(inputs, data))]


def _publish_artefact(
    made: Artefact, network: Network, inputs: Sequence[Tensor], target: Target, data: RecipeData
) -> Exported:
    return publish(
        network, made.signature, lambda file: _copy(made.path, file), inputs, target, INT8, REFERENCE,
        additions=_preparing(inputs, data),
    )  # fmt: skip


def _preparing(inputs: Sequence[Tensor], data: RecipeData) -> Additions:
    return preparing(inputs, data.tokenizer.read_bytes() if data.tokenizer else None, data.max_length)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
