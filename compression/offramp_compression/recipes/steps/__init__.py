"""The kinds of step that a recipe can have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from offramp_compression.recipes.steps.begin import LoadStep, TrainStep
from offramp_compression.recipes.steps.early import ExitsStep
from offramp_compression.recipes.steps.integers import QuantizeStep
from offramp_compression.recipes.steps.smaller import FactorizeStep, PruneStep, PruneWeightsStep, ShareWeightsStep
from offramp_compression.recipes.steps.teach import DistillStep, FineTuneStep
from offramp_compression.recipes.workshop import Step

STEPS: Mapping[str, type[Step]] = MappingProxyType(
    {
        "load": LoadStep,
        "train": TrainStep,
        "distill": DistillStep,
        "fine-tune": FineTuneStep,
        "prune": PruneStep,
        "prune-weights": PruneWeightsStep,
        "factorize": FactorizeStep,
        "share-weights": ShareWeightsStep,
        "quantize": QuantizeStep,
        "exits": ExitsStep,
    }
)
