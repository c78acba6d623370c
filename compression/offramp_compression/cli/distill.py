"""`offramp distill`: a student that learns from teachers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError
from offramp_common.extras import needs_extra

from offramp_compression.cli import learning
from offramp_compression.cli.options import (
    EXTRA,
    Commands,
    add_data_options,
    add_out_option,
    add_run_options,
    prepare,
)
from offramp_compression.cli.train import RATES, add_architecture_options, fresh_network

if TYPE_CHECKING:
    from offramp_compression.distillation.settings import DistillationSettings
    from offramp_compression.network import Network

DESCRIPTION = """\
Train a student from the data's labels and from what one or more teachers say of
the examples. The student is an architecture with fresh weights, or a model file.
Without augmentation a teacher sees each example once, and with --views each view
once, which is what makes this fast where the teacher is slow. Stop it with Ctrl-C,
or kill it: the same command goes on from the checkpoint and ends with the weights
of a run that was never stopped.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "distill",
        help="train a student from a teacher",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", type=Path, action="append", required=True, metavar="MODEL", dest="teachers",
                        help="a model file, or models/NAME[/VERSION]; may be repeated")  # fmt: skip
    student = parser.add_mutually_exclusive_group(required=True)
    student.add_argument(
        "--student", type=Path, metavar="MODEL", help="a model file, or models/NAME[/VERSION], to go on from"
    )
    student.add_argument("--architecture", metavar="NAME", help="begin with fresh weights of this architecture")
    add_architecture_options(parser)
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="import this package if a model file says that its code builds the network; may be repeated",
    )  # fmt: skip
    add_out_option(parser)
    add_data_options(parser)
    _add_distillation_options(parser)
    learning.add_training_options(parser, RATES)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp distill"):
        from offramp_compression.distillation.distill import distill
        from offramp_compression.network_source import open_network
    prepare(options)
    training, settings = learning.training_settings(options), _settings(options)
    teachers = [open_network(path, trusted=options.trust) for path in options.teachers]
    given = _given_student(options)
    examples = learning.open_examples(options, [*teachers, *([given] if given else [])])
    student = given or fresh_network(options, examples)
    with learning.stoppable(options):
        learnt = distill(
            student, teachers, examples.train, settings, training,
            augment=learning.augmentation(options, examples.train),
            origin=student.digest() if options.student else "",
            validate=examples.validation, **learning.watching(options, options.architecture or options.student.name),
        )  # fmt: skip
    learning.write(learnt, examples, options)
    shown = {f"teacher {path.name}": (each, path) for path, each in zip(options.teachers, teachers, strict=True)}
    learning.show({**shown, f"student {options.out.name}": (learnt.network, options.out)}, examples)
    return 0


def _add_distillation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument("--loss", metavar="NAME", help="kl, of softened answers, or mse, of logits (kl)")
    group.add_argument("--temperature", type=float, metavar="T", help="that softens answers (4)")
    group.add_argument("--hard-weight", type=float, metavar="SHARE", help="of the labels in the loss (0.1)")
    group.add_argument("--teacher-weight", type=float, action="append", metavar="X", dest="teacher_weights",
                       help="of a teacher, for each in its order (all alike)")  # fmt: skip
    group.add_argument("--feature", action="append", default=[], metavar="MODULE=MODULE", dest="features",
                       help="match a module of the student to one of the first teacher; may be repeated")  # fmt: skip
    group.add_argument("--feature-weight", type=float, metavar="X", help="of the features' error in the loss (1)")
    group.add_argument("--views", type=int, metavar="EPOCHS",
                       help="repeat the augmented views of so many epochs, each shown to a teacher once")  # fmt: skip


def _settings(options: argparse.Namespace) -> DistillationSettings:
    from offramp_compression.distillation.settings import DistillationSettings

    names = ("loss", "temperature", "hard_weight", "label_smoothing", "teacher_weights", "feature_weight", "views")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    pairs = learning.split_pairs(options.features, "--feature")
    return learning.from_options(DistillationSettings, {**given, "features": pairs})


def _given_student(options: argparse.Namespace) -> Network | None:
    """The one to go on from; None for an architecture."""
    from offramp_compression.network_source import open_network

    if options.student is None:
        return None
    if options.arguments or options.pretrained:
        raise ConfigurationError("--set and --pretrained belong to --architecture; a model file has its own")
    return open_network(options.student, trusted=options.trust)
