"""What all steps that train have in common."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from offramp_common.toml_schema import between

from offramp_compression.data.augment import ImageAugment, trim_padding
from offramp_compression.data.batches import Augment
from offramp_compression.data.dataset import Dataset
from offramp_compression.progress import line
from offramp_compression.recipes.workshop import Workshop
from offramp_compression.training.learn import Watching
from offramp_compression.training.settings import TrainingSettings, UnseededTraining


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`augmentation` of a step: of images. Of text, padding is trimmed and nothing else changed."""

    flip: bool = True
    # Pixels.
    shift: Annotated[int, between(0)] = 2
    erase_probability: Annotated[float, between(0, 1)] = 0.0
    erase_side: Annotated[int, between(1)] = 8

    def of(self, data: Dataset) -> Augment | None:
        """None where nothing is to be done, so that a step knows that examples never vary."""
        if len(data.inputs) > 1:
            return trim_padding
        if not (self.flip or self.shift or self.erase_probability):
            return None
        return ImageAugment(self.flip, self.shift, self.erase_probability, self.erase_side)


@dataclass(frozen=True, slots=True)
class StepTraining(UnseededTraining):
    """`training` of a step."""

    # Left out: the recipe's.
    seed: Annotated[int, between(0)] | None = None


def settings_for(training: StepTraining, workshop: Workshop) -> TrainingSettings:
    """The recipe's seed, device and threads where the step has none of its own."""
    recipe = workshop.recipe
    settings = TrainingSettings(**{**asdict(training), "seed": recipe.seed if training.seed is None else training.seed})
    return replace(
        settings,
        device=recipe.device if training.device == "cpu" else training.device,
        threads=training.threads or recipe.threads,
    )


def watching(workshop: Workshop, name: str) -> Watching:
    """A step's training goes on from its own checkpoint. A log gets a line for each epoch, a terminal a bar."""
    drawn = sys.stderr.isatty()
    return {
        "checkpoint": workshop.folder / "checkpoint.pt",
        "tensorboard": workshop.folder / "tensorboard",
        "progress": drawn,
        "name": name,
        "on_epoch": None if drawn else lambda epoch: workshop.say(f"{name}: {line(epoch)}"),
    }
