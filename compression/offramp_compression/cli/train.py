"""`offramp train`: a network from scratch, such as a teacher."""

from __future__ import annotations

import argparse
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

if TYPE_CHECKING:
    from offramp_compression.network import Network

DESCRIPTION = """\
Train a network from the labels of the data. ARCHITECTURE is resnet18, vgg,
plain_cnn, tiny_cnn, embedding_bag, text_cnn or minilm, or package.module:callable.
Stop it with Ctrl-C, or kill it: the same command goes on from the checkpoint and
ends with the weights of a run that was never stopped.
"""
RATES = learning.Rates("sgd", sgd=0.1, adamw=1e-3)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network from scratch",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("architecture", metavar="ARCHITECTURE")
    add_architecture_options(parser)
    add_out_option(parser)
    add_data_options(parser)
    learning.add_training_options(parser, RATES)
    add_run_options(parser)
    parser.set_defaults(run=run)


def add_architecture_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="arguments",
        help="an argument of the architecture, as JSON, such as width=16; what the data decide is filled in",
    )  # fmt: skip
    parser.add_argument("--pretrained", action="store_true", help="begin with MiniLM's published weights (minilm only)")


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp train"):
        from offramp_compression.data.batches import Batches
        from offramp_compression.training.learn import learn
        from offramp_compression.training.objective import Supervised
    prepare(options)
    settings = learning.training_settings(options)
    examples = learning.open_examples(options)
    network = fresh_network(options, examples)
    augment = learning.augmentation(options, examples.train)
    batches = Batches(examples.train, settings.batch_size, settings.seed, augment)
    with learning.stoppable(options):
        learnt = learn(
            network, batches, settings, Supervised(options.label_smoothing),
            validate=examples.validation, **learning.watching(options, options.architecture),
        )  # fmt: skip
    learning.write(learnt, examples, options)
    learning.show({options.out.name: (learnt.network, options.out)}, examples)
    return 0


def fresh_network(options: argparse.Namespace, examples: learning.Examples) -> Network:
    """Raises ConfigurationError for pretrained weights of an architecture that has none."""
    from offramp_compression.new_network import new_network

    pairs = learning.split_pairs(options.arguments, "--set")
    arguments = {key: learning.as_json(value, f"--set {key}") for key, value in pairs.items()}
    network = new_network(
        options.architecture, arguments, examples.train, options.seed, vocabulary=learning.vocabulary(options)
    )
    if options.pretrained:
        _load_pretrained(network, options.architecture)
    return network


def _load_pretrained(network: Network, architecture: str) -> None:
    from offramp_compression.architectures.minilm import TextClassifier
    from offramp_compression.pretrained import load_minilm

    if not isinstance(network.module, TextClassifier):
        raise ConfigurationError(f'--pretrained: there are published weights of "minilm" only, not of "{architecture}"')
    load_minilm(network.module.encoder)
