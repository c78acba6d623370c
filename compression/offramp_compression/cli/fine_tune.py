"""`offramp fine-tune`: go on from a network that has learnt something."""

from __future__ import annotations

import argparse

from offramp_common.extras import needs_extra

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
)

DESCRIPTION = """\
Train a model further: on newer data, for other classes, as a whole or in part.
MODEL is a model file, or what is served: models/NAME, for its highest version, or
models/NAME/VERSION. Classes that the model knows already keep what it knows of
them; others get fresh weights. The file that is written names MODEL as its parent;
"offramp export" puts it beside the version it came from, as the next one.
"""
RATES = learning.Rates("sgd", sgd=0.01, adamw=1e-4)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "fine-tune",
        help="train a model further, on newer data or for other classes",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser, words="the model to go on from: a model file")
    parser.add_argument(
        "--train", default="all", metavar="WHAT",
        help="head; top:N, which is the head and the last N blocks; or all (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--head", metavar="MODULE", help="the classifier (the last layer with an output for each class)"
    )
    add_out_option(parser)
    add_data_options(parser)
    learning.add_training_options(parser, RATES)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp fine-tune"):
        from offramp_compression.finetune import fine_tune
        from offramp_compression.network_source import version_name
    prepare(options)
    settings = learning.training_settings(options)
    parent = open_model(options)
    name = version_name(options.model) or options.model.name
    examples = learning.open_examples(options, [parent], others=True)
    with learning.stoppable(options):
        learnt = fine_tune(
            parent, examples.train, settings, train=options.train, head=options.head,
            augment=learning.augmentation(options, examples.train), label_smoothing=options.label_smoothing,
            validate=examples.validation, **learning.watching(options, name),
        )  # fmt: skip
    learning.write(learnt, examples, options)
    child = {f"after: {options.out.name}": (learnt.network, options.out)}
    # Of other classes, the parent's accuracy says nothing.
    comparable = parent.class_names == learnt.network.class_names
    before = {f"before: {name}": (parent, options.model)} if comparable else {}
    learning.show({**before, **child}, examples)
    return 0
