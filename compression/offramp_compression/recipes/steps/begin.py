"""Steps that a family begins with: weights that are there, or training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from offramp_compression.classifier import find_classifier
from offramp_compression.data.batches import Batches
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.predict import accuracy
from offramp_compression.freezing import freeze
from offramp_compression.network import Network
from offramp_compression.network_source import network_file, open_network, version_name
from offramp_compression.new_network import new_network
from offramp_compression.pretrained import load_published
from offramp_compression.provenance import Provenance, installed_versions
from offramp_compression.recipes.steps.learning import Augmentation, StepTraining, settings_for, watching
from offramp_compression.recipes.workshop import Step, Workshop
from offramp_compression.training.learn import learn
from offramp_compression.training.objective import Supervised


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadStep(Step):
    """`kind = "load"`: a model file, a version in a repository, or plain weights of an architecture."""

    kind: Literal["load"]
    # Relative to the recipe: a file, or models/NAME or models/NAME/VERSION.
    weights: str
    # For plain .safetensors weights, which do not say what they are of.
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, base: Path) -> tuple[Path, ...]:
        return (network_file(base / self.weights),)

    def make(self, workshop: Workshop) -> Network:
        path = workshop.base / self.weights
        if not self.architecture:
            version = version_name(path)
            return open_network(path).described(settings={"started_from": version} if version else {})
        network = new_network(self.architecture, self.arguments, workshop.data.train)
        _fill(network, path)
        measured = {"validation_accuracy": accuracy(network.module, workshop.data.validation)}
        said = {"weights": self.weights}
        return replace(network, provenance=Provenance("load", said, versions=installed_versions(), metrics=measured))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep(Step):
    """`kind = "train"`: from the labels; from scratch, or from weights that are published for the architecture."""

    kind: Literal["train"]
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    # What is trained: "all", "head", or "top:N" for that and the last N blocks.
    train: str = "all"
    label_smoothing: float = 0.0
    training: StepTraining = field(default_factory=StepTraining)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def make(self, workshop: Workshop) -> Network:
        settings = settings_for(self.training, workshop)
        data = workshop.data.train
        network = new_network(
            self.architecture, self.arguments, data, settings.seed, vocabulary=workshop.data.vocabulary
        )
        if self.pretrained:
            load_published(network)
        freeze(network.module, self.train, find_classifier(network.module, len(network.class_names)))
        batches = Batches(data, settings.batch_size, settings.seed, self.augmentation.of(data))
        learnt = learn(
            network, batches, settings, Supervised(self.label_smoothing),
            details={"pretrained": self.pretrained, "train": self.train},
            validate=workshop.data.validation, **watching(workshop, self.name),
        )  # fmt: skip
        learnt.network.module.requires_grad_(True)
        return learnt.network


def _fill(network: Network, path: Path) -> None:
    try:
        network.module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{path} does not hold the weights of {network.blueprint.architecture} with these arguments: {error}"
        ) from error
