"""`offramp export`: a model file as a version of a model that the server serves."""

from __future__ import annotations

import argparse
from dataclasses import replace

from offramp_common.extras import needs_extra

from offramp_compression.cli.options import (
    EXTRA,
    Commands,
    add_data_options,
    add_model_option,
    add_run_options,
    open_data,
    open_model,
    prepare,
)
from offramp_compression.cli.target import add_target_options, say_written, target

DESCRIPTION = """\
Write a model file as .pt2 or .onnx into a model repository, with model.toml,
labels, provenance and [preprocess], so that clients may send texts or files of
pictures instead of tensors. The file is loaded again and has to answer as the
network does on real examples (--data); only then the version appears, whole, by a
rename.
A new model gets version 1; one that is there gets its next version, and what was
set in its model.toml stays.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="put a model file into a repository",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    add_target_options(parser)
    parser.add_argument(
        "--stages", action="store_true", help="of a network with exits, write each stage too, as NAME-stage1, ..."
    )
    parser.add_argument(
        "--fixed-length", action="store_true", help="take texts of the length that the data has, instead of any length"
    )
    parser.add_argument(
        "--no-network", action="store_true",
        help="leave out network.safetensors, from which the version could be fine-tuned; saves about half the room",
    )  # fmt: skip
    add_data_options(parser, part="test")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp export"):
        from offramp_compression.data.dataset import tensors
        from offramp_compression.data.sample import sample
        from offramp_compression.exits.segments import export_segments
        from offramp_compression.export.preparing import preparing
        from offramp_compression.export.program import NONE_VARY, text_lengths
        from offramp_compression.export.publish import export_network
    wanted = replace(target(options), keep_network=not options.no_network)
    prepare(options)
    network = open_model(options)
    inputs = tensors(sample(open_data(options), options.parity_rows, options.seed))
    variable = NONE_VARY if options.fixed_length else text_lengths(network.input_names, inputs)
    tokenizer = options.tokenizer.read_bytes() if options.tokenizer else None
    additions = preparing(inputs, tokenizer, options.max_length)
    if options.stages:
        for exported in export_segments(network, inputs, wanted, variable=variable, additions=additions):
            say_written(exported)
    else:
        say_written(export_network(network, inputs, wanted, variable=variable, additions=additions))
    return 0
