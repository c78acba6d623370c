"""`offramp quantize-train`: fine-tune a network so that it bears being quantised."""

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
from offramp_compression.cli.quantizing import add_range_option, reduce_range

DESCRIPTION = """\
Train a model file further with weights and activations rounded as INT8 will round
them (quantisation-aware training), where `offramp quantize` loses too much without.
What is written is a float model file; `offramp quantize` makes INT8 of it. The
accuracy that is shown for an epoch is that of the rounded network.
"""
RATES = learning.Rates("sgd", sgd=0.002, adamw=1e-5)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "quantize-train",
        help="fine-tune a model so that it bears being quantised",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser, words="the model file to go on from")
    parser.add_argument(
        "--keep-float", action="append", default=[], metavar="MODULE", help="do not round this layer; may be repeated"
    )
    add_range_option(parser)
    add_out_option(parser)
    add_data_options(parser)
    learning.add_training_options(parser, RATES)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp quantize-train"):
        from offramp_compression.data.batches import Batches
        from offramp_compression.export.program import text_lengths
        from offramp_compression.modules import get_module
        from offramp_compression.quantization.qat import fine_tune_rounded
        from offramp_compression.training.objective import Supervised
    prepare(options)
    settings = learning.training_settings(options)
    parent = open_model(options)
    for name in options.keep_float:
        get_module(parent.module, name)
    examples = learning.open_examples(options, [parent])
    batches = Batches(examples.train, settings.batch_size, options.seed, learning.augmentation(options, examples.train))
    with learning.stoppable(options):
        learnt = fine_tune_rounded(
            parent, batches, settings, Supervised(options.label_smoothing),
            reduce_range=reduce_range(options), keep_float=options.keep_float,
            variable=text_lengths(parent.input_names, batches.batch(0).inputs),
            validate=examples.validation, **learning.watching(options, options.model.name),
        )  # fmt: skip
    learning.write(learnt, examples, options)
    names = {f"before: {options.model.name}": (parent, options.model)}
    learning.show({**names, f"after: {options.out.name}": (learnt.network, options.out)}, examples)
    return 0
