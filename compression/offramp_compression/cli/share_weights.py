"""`offramp share-weights`: few values for many weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from offramp_common.extras import needs_extra
from offramp_common.tables import table

from offramp_compression.cli import learning, recovering
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
    from offramp_compression.weight_sharing import Shared

DESCRIPTION = """\
Cluster each layer's weights to 2^BITS values and retrain these values. The file
holds them once, and BITS bits for each weight. It gets smaller; answers do not get
faster, and an exported model has its weights written out again.
"""
# The gradient of a value is the sum of those of its weights; adamw does not mind.
RATES = learning.Rates("adamw", sgd=1e-5, adamw=1e-4)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "share-weights",
        help="let the weights of a layer share few values",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    add_out_option(parser)
    parser.add_argument("--bits", type=int, metavar="BITS", help="of a position, 1 to 8 (4)")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="LAYER", help="leave this as it is; may be repeated"
    )
    add_data_options(parser)
    recovering.add_recovery_options(parser, RATES)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp share-weights"):
        from offramp_compression.weight_sharing import WeightSharing, share_weights
    prepare(options)
    recovery = recovering.recovery(options)
    given = {"keep": options.keep, **({} if options.bits is None else {"bits": options.bits})}
    settings = learning.from_options(WeightSharing, given)
    parent = open_model(options)
    examples = learning.open_examples(options, [parent])
    shared = share_weights(parent, settings)
    say(_outcome(shared))
    recovering.finish(recovering.Change(parent, shared.network), recovery, examples, options)
    return 0


def _outcome(shared: Shared) -> str:
    rows = [
        (
            each.layer, f"{each.weights:,}", f"{each.values}", f"{each.bits_per_weight:.2f}", f"{each.bytes_before:,}",
            f"{each.bytes_after:,}", f"{each.error:.3f}",
        )
        for each in shared.layers
    ]  # fmt: skip
    weights, before, after = (
        sum(getattr(each, name) for each in shared.layers) for name in ("weights", "bytes_before", "bytes_after")
    )
    kept = [f"{name} stays as it is: {reason}" for name, reason in shared.kept.items()]
    header = ("layer", "weights", "values", "bits a weight", "bytes in FP32", "bytes shared", "relative error")
    total = (
        f"{weights:,} weights share values, at {8 * after / weights:.2f} bits each with the codebooks: "
        f"{before:,} bytes in FP32, {after:,} bytes now ({before / after:.1f} times smaller)"
    )
    return "\n".join([table(header, rows, right=range(1, 7)), *kept, total])
