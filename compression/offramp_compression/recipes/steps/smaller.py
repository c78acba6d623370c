"""Steps that take something out of a network, and let it recover."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from offramp_compression.distillation.settings import DistillationSettings
from offramp_compression.evaluation.predict import accuracy
from offramp_compression.factorization.factorize import Factorization, factorize
from offramp_compression.network import Network
from offramp_compression.pruning.masks import Masks, prune_weights, sparsity, zeros_by_layer
from offramp_compression.pruning.plan import ChannelPruning, prune_channels
from offramp_compression.recipes.steps.learning import Augmentation, StepTraining, settings_for, watching
from offramp_compression.recipes.workshop import Step, Workshop
from offramp_compression.recovery import recover
from offramp_compression.weight_sharing import WeightSharing, share_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkingStep(Step):
    """A step that loses something first and learns from the network that it was afterwards."""

    # How it recovers; left out: it does not.
    training: StepTraining | None = None
    # What it learns from the network that it was.
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    # Learn from the labels alone.
    labels_only: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)

    def problem(self) -> str:
        return "" if self.of else 'name the step "of" which the network is made smaller'

    def make(self, workshop: Workshop) -> Network:
        before = workshop.classifier(self.of)
        smaller, masks = self.shrink(before, workshop)
        reached = accuracy(smaller.module, workshop.data.validation)
        workshop.say(f"{self.name}: validation accuracy {reached:.4f} before recovery")
        if self.training is None:
            return smaller.described(metrics={"validation_accuracy": reached})
        data = workshop.data
        return recover(
            smaller, data.train, settings_for(self.training, workshop),
            teacher=None if self.labels_only else before, distillation=self.distillation, masks=masks,
            augment=self.augmentation.of(data.train), validate=data.validation, **watching(workshop, self.name),
        ).network.described(metrics={"accuracy_before_recovery": reached})  # fmt: skip

    @abstractmethod
    def shrink(self, network: Network, workshop: Workshop) -> tuple[Network, Masks | None]:
        """The smaller network, and which weights have to stay at zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneStep(ShrinkingStep):
    """`kind = "prune"`: whole channels, chosen by what their loss costs on the validation examples."""

    kind: Literal["prune"]
    channels: ChannelPruning = field(default_factory=ChannelPruning)

    def shrink(self, network: Network, workshop: Workshop) -> tuple[Network, Masks | None]:
        data = workshop.data
        pruned = prune_channels(network, data.train, data.validation, self.channels)
        widths = (
            f"{group.name} {group.size} to {pruned.stay[group.name]}"
            for group in pruned.channels.groups
            if pruned.stay.get(group.name, group.size) != group.size
        )
        workshop.say(f"{self.name}: {', '.join(widths)}")
        return pruned.network, None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWeightsStep(ShrinkingStep):
    """`kind = "prune-weights"`: single weights become zero and stay so."""

    kind: Literal["prune-weights"]
    sparsity: float = 0.8
    scope: Literal["global", "layerwise"] = "global"
    keep: tuple[str, ...] = ()

    def shrink(self, network: Network, workshop: Workshop) -> tuple[Network, Masks | None]:
        pruned = prune_weights(network, self.sparsity, self.scope, self.keep)
        shares = (
            f"{name} {each.zeros / each.weights:.1%}" for name, each in zeros_by_layer(pruned.network.module).items()
        )
        workshop.say(f"{self.name}: {sparsity(pruned.network.module):.1%} zeros: {', '.join(shares)}")
        return pruned.network, pruned.masks


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeStep(ShrinkingStep):
    """`kind = "factorize"`: layers as products of smaller ones."""

    kind: Literal["factorize"]
    factorization: Factorization = field(default_factory=Factorization)

    def shrink(self, network: Network, workshop: Workshop) -> tuple[Network, Masks | None]:
        made = factorize(network, self.factorization)
        workshop.say(f"{self.name}: {', '.join(f'{each.layer} {each.size}' for each in made.factors)}")
        return made.network, None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareWeightsStep(ShrinkingStep):
    """`kind = "share-weights"`: a codebook for each layer."""

    kind: Literal["share-weights"]
    sharing: WeightSharing = field(default_factory=WeightSharing)

    def shrink(self, network: Network, workshop: Workshop) -> tuple[Network, Masks | None]:
        return share_weights(network, self.sharing).network, None
