"""`offramp factorize`: layers as products of smaller ones."""

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
    from offramp_compression.factorization.factorize import Factorized

DESCRIPTION = """\
Replace layers by products of smaller ones that come closest to them, then
fine-tune on the answers of the model it was. low-rank: linear layers and
convolutions as two of a rank that holds the --energy of the layer's singular
values. depthwise-separable: convolutions as --filters for each input channel and a
1x1 convolution. Layers that would not get smaller stay as they are.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "factorize",
        help="replace layers by products of smaller ones",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    add_out_option(parser)
    parser.add_argument("--method", metavar="NAME", help="low-rank or depthwise-separable (low-rank)")
    parser.add_argument("--energy", type=float, metavar="SHARE", help="of low-rank (0.9)")
    parser.add_argument("--filters", type=int, metavar="N", help="of depthwise-separable (1)")
    parser.add_argument("--only", action="append", default=[], metavar="LAYER", help="factorise this; may be repeated")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="LAYER", help="leave this as it is; may be repeated"
    )
    parser.add_argument(
        "--timed-batch", type=int, default=16, metavar="N", help="examples in a timed batch (%(default)s)"
    )
    add_data_options(parser)
    recovering.add_recovery_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp factorize"):
        from offramp_compression.factorization.factorize import Factorization, factorize
    prepare(options)
    recovery = recovering.recovery(options)
    names = ("method", "energy", "filters", "only", "keep")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = learning.from_options(Factorization, given)
    parent = open_model(options)
    examples = learning.open_examples(options, [parent])
    made = factorize(parent, settings)
    say(_outcome(made))
    after = recovering.finish(recovering.Change(parent, made.network), recovery, examples, options)
    recovering.say_times(parent, after, examples, options.timed_batch)
    return 0


def _outcome(made: Factorized) -> str:
    rows = [
        (each.layer, str(each.size), f"{each.before:,}", f"{each.after:,}", f"{each.error:.3f}")
        for each in made.factors
    ]
    kept = [f"{name} stays as it is: {reason}" for name, reason in made.kept.items()]
    header = ("layer", "rank or filters", "parameters before", "after", "relative error")
    return "\n".join([table(header, rows, right=range(1, 5)), *kept])
