"""`offramp attach-exits`: let a network answer before its end."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from offramp_common.extras import needs_extra
from offramp_common.tables import table

from offramp_compression.cli import learning
from offramp_compression.cli.options import (
    EXTRA,
    Commands,
    add_data_options,
    add_model_option,
    add_out_option,
    add_run_options,
    open_model,
    prepare,
    say,
)

if TYPE_CHECKING:
    from offramp_compression.data.dataset import Dataset
    from offramp_compression.network import Network

DESCRIPTION = """\
Attach exit heads to modules of a network, named as in its code (offramp profile
shows the names), and train them: with the whole network, or alone, which leaves
the network's own answer as it is and takes one pass through it. The file that is
written holds the network with all its exits; "offramp export --stages" writes it
as one model for each stage, for an early_exit route.
"""
RATES = learning.Rates("sgd", sgd=0.05, adamw=1e-4)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "attach-exits",
        help="give a network exits, and train them",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser, words="the model file to start from")
    parser.add_argument(
        "--at", action="append", required=True, metavar="MODULE", help="attach an exit to this module; may be repeated"
    )
    parser.add_argument("--head", default="auto", help="auto, pooled, mean, first-token or flat (%(default)s)")
    parser.add_argument(
        "--mask", default="", metavar="INPUT", help="which input marks padding (attention_mask, if any)"
    )
    parser.add_argument("--train", default="joint", help="joint: everything; frozen: the heads alone (%(default)s)")
    parser.add_argument(
        "--weight", action="append", type=float, default=[], metavar="X",
        help="what an exit's loss counts, the deepest last; repeated for each (all alike)",
    )  # fmt: skip
    parser.add_argument(
        "--distill", type=float, default=0.0, help="how much exits learn from the deepest (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=3.0, help="of what they learn from it (%(default)s)")
    add_out_option(parser)
    add_data_options(parser)
    learning.add_training_options(parser, RATES)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp attach-exits"):
        from offramp_compression.exits.learn import ExitSettings, learn_exits
    prepare(options)
    training = learning.training_settings(options)
    exits = learning.from_options(
        ExitSettings,
        {
            "modules": options.at, "head": options.head, "mask": options.mask, "train": options.train,
            "weights": options.weight, "distill": options.distill, "temperature": options.temperature,
            "label_smoothing": options.label_smoothing,
        },
    )  # fmt: skip
    parent = open_model(options)
    examples = learning.open_examples(options, [parent])
    with learning.stoppable(options):
        learnt = learn_exits(
            parent, exits, examples.train, training, augment=learning.augmentation(options, examples.train),
            validate=examples.validation, **learning.watching(options, options.model.name),
        )  # fmt: skip
    learning.write(learnt, examples, options)
    learning.show(
        {
            f"before: {options.model.name}": (parent, options.model),
            f"after: {options.out.name}": (learnt.network, options.out),
        },
        examples,
    )
    if examples.measured is not None:
        show_exits(learnt.network, examples.measured)
    return 0


def show_exits(network: Network, data: Dataset) -> None:
    """A table of what each exit is worth and what it costs to get there."""
    from offramp_compression.exits.measure import measure_exits

    rows = [
        (
            str(number),
            each.module or "(the end)",
            f"{each.accuracy:.4f}",
            f"{each.agreement:.4f}",
            f"{each.flops / 1e6:.2f}",
        )
        for number, each in enumerate(measure_exits(network, data), 1)
    ]
    header = ("exit", "at", "accuracy", "agrees with the end", "MFLOPs so far")
    say(table(header, rows, right=range(2, len(header))))
