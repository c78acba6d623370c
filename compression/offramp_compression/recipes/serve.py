"""A family's models in the repository: each format once, and again only where the model has changed."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.export.formats import Format
from offramp_compression.export.parity import INT8
from offramp_compression.export.program import text_lengths
from offramp_compression.export.publish import Target, export_network, publish
from offramp_compression.network import Network
from offramp_compression.quantization.quantize import REFERENCE
from offramp_compression.recipes.run import Recipe
from offramp_compression.recipes.workshop import Product

# Real inputs on which an exported model has to answer as the network does.
_PARITY_EXAMPLES = 64
_FINGERPRINT = "recipe_fingerprint"


@dataclass(frozen=True, slots=True)
class Served:
    """A model of the repository and the step that has made it."""

    name: str
    step: str
    folder: Path


def publish_family(
    recipe: Recipe, products: Mapping[str, Product], repository: Path, data: Dataset, say: Callable[[str], None]
) -> list[Served]:
    """Write what the steps want served and what is not there yet. Raises ExportError."""
    served = []
    for product in products.values():
        for name, format in _names(recipe, product):
            if _is_there(repository / name, product.fingerprint):
                say(f"{name}: in {repository} already")
            else:
                target = Target(repository, name, format, max_batch_size=product.step.max_batch_size)
                say(f"{name}: {_publish(product, target, data)}")
            served.append(Served(name, product.step.name, repository / name))
    return served


def _names(recipe: Recipe, product: Product) -> Iterator[tuple[str, Format]]:
    step = product.step
    name = step.serve_as or f"{recipe.table.name}-{step.name}"
    for position, format in enumerate(step.serve):
        yield name if position == 0 else f"{name}-{format}", format


def _is_there(folder: Path, fingerprint: str) -> bool:
    try:
        settings = tomllib.loads((folder / "model.toml").read_text())
    except FileNotFoundError:
        return False
    return bool(settings.get("metadata", {}).get(f"provenance.settings.{_FINGERPRINT}") == fingerprint)


def _publish(product: Product, target: Target, data: Dataset) -> str:
    inputs = tensors(data, np.arange(min(_PARITY_EXAMPLES, len(data))))
    mark = {_FINGERPRINT: product.fingerprint}
    made = product.made
    if isinstance(made, Network):
        variable = text_lengths(made.input_names, inputs)
        exported = export_network(made.described(settings=mark), inputs, target, variable=variable)
    else:
        network, path = made.network.described(settings=mark), made.path
        exported = publish(network, made.signature, lambda file: _copy(path, file), inputs, target, INT8, REFERENCE)
    return f"{exported.file}, {exported.parity}"


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
