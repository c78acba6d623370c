"""Train the Fashion-MNIST teacher or student: `python examples/fashion/train.py teacher`.

Stop it at any time; the same command goes on from the last checkpoint and ends with the same weights as a run
that was never stopped: the order of the images and their augmentation are functions of the seed and the step, and
the checkpoint holds the rest (weights, optimiser, schedule).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from data import Split, load, locate
from models import build, load_weights, save_weights
from offramp_compression.data.augment import ImageAugment
from offramp_compression.data.batches import Batches
from offramp_compression.errors import DataError
from offramp_compression.evaluation.predict import accuracy
from offramp_compression.modules import parameter_count
from torch import Tensor, nn
from tqdm import tqdm

WEIGHTS = Path(__file__).with_name("weights")
CHECKPOINT_EVERY = 200


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: everything that the weights depend on besides the data and torch itself."""

    epochs: int
    batch_size: int
    peak_learning_rate: float
    weight_decay: float
    label_smoothing: float
    erase_probability: float
    seed: int = 0


RECIPES = {
    "teacher": Recipe(
        epochs=6, batch_size=128, peak_learning_rate=0.2, weight_decay=5e-4,
        label_smoothing=0.0, erase_probability=0.25,
    ),
    "student": Recipe(
        epochs=20, batch_size=128, peak_learning_rate=0.1, weight_decay=1e-4,
        label_smoothing=0.0, erase_probability=0.0,
    ),
}  # fmt: skip


class CheckpointError(Exception):
    """A checkpoint cannot be continued with the recipe that was asked for."""


class Trainer:
    """One training run over ``train``, from its beginning or from the checkpoint at ``checkpoint``.

    Raises CheckpointError if that file belongs to a run with another recipe.
    """

    def __init__(self, name: str, recipe: Recipe, train: Split, checkpoint: Path) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        augment = ImageAugment(erase_probability=recipe.erase_probability)
        self.batches = Batches(train.dataset(), recipe.batch_size, recipe.seed, augment)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        torch.manual_seed(recipe.seed)
        # On a CPU, oneDNN's convolutions run faster on channels-last tensors, forward and backward.
        self.model = build(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(
            _decay_groups(self.model, recipe.weight_decay),
            lr=recipe.peak_learning_rate, momentum=0.9, nesterov=True,
        )  # fmt: skip
        # Smith & Topin, Super-Convergence (2017): up for a quarter of the run, then down to nearly nothing.
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, recipe.peak_learning_rate, total_steps=self.total_steps, pct_start=0.25,
            cycle_momentum=False,
        )  # fmt: skip
        if checkpoint.exists():
            self._restore()

    def steps(self) -> Iterator[tuple[float, float]]:
        """Train to the end; yields loss and accuracy of every batch, and writes checkpoints on the way."""
        while self.step < self.total_steps:
            batch = self.batches.batch(self.step)
            yield self._train_batch(batch.inputs[0].contiguous(memory_format=torch.channels_last), batch.labels)
            if self.step % CHECKPOINT_EVERY == 0 or self.step % self.steps_per_epoch == 0:
                self.save()

    def save(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _restore(self) -> None:
        if not is_zipfile(self.checkpoint):
            raise CheckpointError(f"{self.checkpoint} is damaged; delete it to start again.")
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise CheckpointError(
                f"{self.checkpoint} belongs to a run with {state['recipe']}, not {asdict(self.recipe)}; "
                f"delete it to start again, or pass the same options to go on."
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]

    def _train_batch(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        self.model.train()
        logits = self.model(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the weights of convolutions and the head only: shrinking norms and biases does not regularise."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def train(trainer: Trainer, name: str) -> None:
    """Run ``trainer`` to its end behind a progress bar with the running loss and accuracy."""
    loss = right = 0.0
    with tqdm(total=trainer.total_steps, initial=trainer.step, desc=name, unit="step", mininterval=1.0) as bar:
        for count, (batch_loss, batch_right) in enumerate(trainer.steps(), start=1):
            # An exponential mean over about 100 batches; a plain one while there are fewer.
            weight = 1 / min(count, 100)
            loss += weight * (batch_loss - loss)
            right += weight * (batch_right - right)
            epoch = (trainer.step - 1) // trainer.steps_per_epoch + 1
            bar.set_postfix(epoch=f"{epoch}/{trainer.recipe.epochs}", loss=f"{loss:.3f}", accuracy=f"{right:.4f}",
                            refresh=False)  # fmt: skip
            bar.update()


def record(name: str, recipe: Recipe, weights: Path, test: Split) -> dict[str, Any]:
    """Measure the weights that were written on ``test`` and put the figures into `metrics.json` beside them."""
    model = load_weights(name, weights)
    measured = accuracy(model, test.dataset())
    entry = {
        "test_accuracy": round(measured, 4),
        "test_images": len(test.labels),
        "parameters": parameter_count(model),
        "bytes": weights.stat().st_size,
        "torch": torch.__version__,
        "recipe": asdict(recipe),
    }
    path = weights.with_name("metrics.json")
    entries = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**entries, name: entry}, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path)
    return entry


def main() -> int:
    options = _parse()
    torch.set_num_threads(options.threads)
    recipe = replace(RECIPES[options.model], seed=options.seed)
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs)
    try:
        folder = locate(options.data)
        trainer = Trainer(options.model, recipe, load(folder, "train"), options.out / f"{options.model}.checkpoint")
        train(trainer, options.model)
        weights = options.out / f"{options.model}.safetensors"
        save_weights(trainer.model, weights)
        entry = record(options.model, recipe, weights, load(folder, "t10k"))
    except (DataError, CheckpointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    print(f"{options.model}: {entry['test_accuracy']:.2%} of {entry['test_images']} test images, "
          f"{entry['parameters']} parameters, {weights}")  # fmt: skip
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a Fashion-MNIST classifier; stop it and run it again to go on.")
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, help="passes over the 60,000 images (teacher 6, student 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a folder with the four IDX .gz files; found or fetched otherwise")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where weights and checkpoint go")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
