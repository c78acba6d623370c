"""What a step works with: the data, what other steps have made, and a folder of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from offramp_compression.errors import ModelError
from offramp_compression.export.program import Signature
from offramp_compression.network import Network
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.schema import FileFormat, RecipeTable, StepTable


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model that is no network any more: a quantised program, ready to be served."""

    # model.pt2 or model.onnx, in the step's folder.
    path: Path
    signature: Signature
    # The float network that it was made of, with the artefact's own provenance.
    network: Network

    @property
    def format(self) -> str:
        return self.path.suffix.removeprefix(".")


Made: TypeAlias = Network | Artefact


@dataclass(frozen=True, slots=True)
class Workshop:
    """What there is to make a step's result of."""

    recipe: RecipeTable
    data: RecipeData
    # What relative paths of the recipe are relative to.
    base: Path
    # The step's own folder, which outlives a run that is stopped: checkpoints and event files go here.
    folder: Path
    # The network that a step has made, by the step's name. Raises ModelError for a step that made none.
    network: Callable[[str], Network]
    say: Callable[[str], None]

    def classifier(self, name: str) -> Network:
        """The network of a step, to be measured on the recipe's data. Raises ModelError if its classes differ."""
        network = self.network(name)
        if network.class_names != self.data.train.class_names:
            raise ModelError(
                f"step {name} has the classes {', '.join(network.class_names[:5])} and the data "
                f"{', '.join(self.data.train.class_names[:5])}; fine-tune it first, or give the data its class_names"
            )
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(StepTable, ABC):
    """One kind of step, with the fields that it adds to those of all steps."""

    def parents(self) -> tuple[str, ...]:
        """The steps whose results it needs, in the order in which a reader would name them."""
        return (self.of,) if self.of else ()

    def inputs(self, base: Path) -> tuple[Path, ...]:
        """The files it reads besides the data: if one of them changes, it is made again."""
        return ()

    def bound_to(self) -> Mapping[str, str]:
        """The packages, and their versions, that have to be as they are for what it makes to be read."""
        return {}

    def problem(self) -> str:
        """What is wrong with its fields, beyond their types, as the end of a sentence; empty if nothing is."""
        return ""

    def served(self, family: str) -> list[tuple[str, FileFormat]]:
        """The models of the repository that the step becomes, by name, and their formats."""
        name = self.serve_as or f"{family}-{self.name}"
        return [(name if position == 0 else f"{name}-{format}", format) for position, format in enumerate(self.serve)]

    @abstractmethod
    def make(self, workshop: Workshop) -> Made: ...


@dataclass(frozen=True, slots=True)
class Product:
    """A step's result, made now or before."""

    step: Step
    fingerprint: str
    folder: Path
    made: Made
    # Seconds it took when it was made.
    seconds: float
