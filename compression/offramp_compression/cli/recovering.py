"""What the commands that take something out of a model share: how it recovers, what is shown and what is written."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_compression.cli import learning
from offramp_compression.cli.options import say, warn

if TYPE_CHECKING:
    from offramp_compression.distillation.settings import DistillationSettings
    from offramp_compression.network import Network
    from offramp_compression.pruning.masks import Masks
    from offramp_compression.training.settings import TrainingSettings

RATES = learning.Rates("sgd", sgd=0.02, adamw=1e-4)


@dataclass(frozen=True, slots=True)
class Change:
    """A model before and after something was taken out of it; ``masks`` say which weights stay at zero."""

    before: Network
    after: Network
    masks: Masks | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    training: TrainingSettings
    distillation: DistillationSettings


def add_recovery_options(parser: argparse.ArgumentParser, rates: learning.Rates = RATES) -> None:
    learning.add_training_options(parser, rates)
    group = parser.add_argument_group("recovery", "how the model is trained afterwards; --epochs 0: it is not")
    group.add_argument("--labels-only", action="store_true", help="do not learn from MODEL's answers as well")
    group.add_argument("--temperature", type=float, metavar="T", help="that softens MODEL's answers (4)")
    group.add_argument("--hard-weight", type=float, metavar="SHARE", help="of the labels in the loss (0.1)")


def recovery(options: argparse.Namespace) -> Recovery | None:
    """How to fine-tune; None with `--epochs 0`. Raises ConfigurationError for a value that is out of bounds."""
    if options.epochs == 0:
        return None
    return Recovery(learning.training_settings(options), _distillation(options))


def finish(
    change: Change, recovery: Recovery | None, examples: learning.Examples, options: argparse.Namespace
) -> Network:
    """Fine-tune what is left, write it, and show it beside what it was made of; returns what is in the file."""
    from offramp_compression.evaluation.predict import accuracy
    from offramp_compression.model_file import load, save

    if examples.measured is not None:
        say(f"accuracy without recovery ({examples.name}): {accuracy(change.after.module, examples.measured):.4f}")
    if recovery is None:
        save(change.after, options.out)
    else:
        _recover(change, recovery, examples, options)
    after = load(options.out, trusted=options.trust)
    learning.show({_name("before", options.model): (change.before, options.model),
                   _name("after", options.out): (after, options.out)}, examples)  # fmt: skip
    return after


def say_times(before: Network, after: Network, examples: learning.Examples, batch_size: int) -> None:
    """What a batch takes in torch eager, measured in turn."""
    import numpy as np
    import torch

    from offramp_compression.data.dataset import tensors
    from offramp_compression.evaluation.load import ProcessorShare, remark
    from offramp_compression.pruning.cost import seconds

    batch = tensors(examples.train, np.arange(batch_size) % len(examples.train))
    with ProcessorShare() as share:
        times = seconds({"before": before.module, "after": after.module}, batch)
    say(
        f"eager, batch of {batch_size}: {times['before'] * 1e3:.2f} ms before, {times['after'] * 1e3:.2f} ms after "
        f"({times['before'] / times['after']:.2f} times the throughput)"
    )
    # On one thread they are the processor's times, in which other programs' do not count.
    if torch.get_num_threads() > 1 and (about := remark(share.value)):
        warn(about)


def _recover(change: Change, recovery: Recovery, examples: learning.Examples, options: argparse.Namespace) -> None:
    from offramp_compression.recovery import recover

    with learning.stoppable(options):
        learnt = recover(
            change.after, examples.train, recovery.training,
            teacher=None if options.labels_only else change.before,
            distillation=recovery.distillation,
            label_smoothing=options.label_smoothing,
            masks=change.masks,
            augment=learning.augmentation(options, examples.train),
            validate=examples.validation,
            **learning.watching(options, options.out.name),
        )  # fmt: skip
    learning.write(learnt, examples, options)


def _distillation(options: argparse.Namespace) -> DistillationSettings:
    from offramp_compression.distillation.settings import DistillationSettings

    names = ("temperature", "hard_weight", "label_smoothing")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return learning.from_options(DistillationSettings, given)


def _name(when: str, path: Path) -> str:
    return f"{when}: {path.name}"
