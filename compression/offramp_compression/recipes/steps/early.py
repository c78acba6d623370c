"""The step that gives a network exits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from offramp_compression.exits.learn import ExitSettings, learn_exits, load_exits
from offramp_compression.exits.measure import measure_exits
from offramp_compression.network import Network
from offramp_compression.recipes.steps.learning import Augmentation, StepTraining, settings_for, watching
from offramp_compression.recipes.workshop import Step, Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitsStep(Step):
    """`kind = "exits"`: heads at modules of the network of step `of`. It is served as a whole and stage by stage."""

    kind: Literal["exits"]
    exits: ExitSettings
    # A .safetensors file, relative to the recipe, that has their weights already: nothing is trained.
    heads: str = ""
    training: StepTraining = field(default_factory=StepTraining)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def problem(self) -> str:
        if not self.of:
            return 'name the step "of" which the network gets exits'
        if self.heads and self.exits.train != "frozen":
            return 'heads that are there belong to a frozen trunk; say exits = { train = "frozen", ... }'
        return ""

    def inputs(self, base: Path) -> tuple[Path, ...]:
        return (base / self.heads,) if self.heads else ()

    def make(self, workshop: Workshop) -> Network:
        network = self._network(workshop)
        measured = {}
        for number, each in enumerate(measure_exits(network, workshop.data.validation), start=1):
            workshop.say(
                f"{self.name}: exit {number} ({each.module or 'the end'}): validation accuracy {each.accuracy:.4f}, "
                f"agreement with the end {each.agreement:.4f}, {each.flops / 1e6:.1f} MFLOPs"
            )
            measured[f"exit_{number}_validation_accuracy"] = each.accuracy
        return network.described(metrics=measured)

    def _network(self, workshop: Workshop) -> Network:
        data, trunk = workshop.data, workshop.classifier(self.of)
        if self.heads:
            return load_exits(trunk, self.exits, data.train, workshop.base / self.heads)
        return learn_exits(
            trunk, self.exits, data.train, settings_for(self.training, workshop),
            augment=self.augmentation.of(data.train),
            # Heads on a frozen trunk have no epochs to choose from.
            validate=None if self.exits.train == "frozen" else data.validation,
            **watching(workshop, self.name),
        ).network  # fmt: skip
