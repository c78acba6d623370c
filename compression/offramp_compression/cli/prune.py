"""`offramp prune`: fewer channels, or more zeros."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError
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
    from offramp_compression.network import Network
    from offramp_compression.pruning.plan import Pruned
    from offramp_compression.pruning.sensitivity import Point, Scan

DESCRIPTION = """\
Make a model smaller by what it misses least, then fine-tune it on the answers of
the model it was.

--structure channels takes whole channels out, so that the network really shrinks.
A scan takes channels from one group of layers at a time, sees what that costs in
accuracy on held-out examples, and takes most from where it costs least, until so
much is --left of the --target. --scan FILE keeps the scan for further targets.

--structure weights sets single weights to zero and keeps them there. That makes
neither the file nor a dense engine's answers any faster; it is the base for
engines that skip zeros.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "prune",
        help="take channels or weights out of a model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    add_out_option(parser)
    parser.add_argument("--structure", choices=("channels", "weights"), default="channels", help="(%(default)s)")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="LAYER",
        help="leave this layer as wide as it is; may be repeated",
    )
    _add_channel_options(parser)
    _add_weight_options(parser)
    add_data_options(parser)
    recovering.add_recovery_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp prune"):
        import offramp_compression.pruning.plan  # noqa: F401
    prepare(options)
    recovery = recovering.recovery(options)
    parent = open_model(options)
    examples = learning.open_examples(options, [parent])
    change = _channels(parent, examples, options) if options.structure == "channels" else _weights(parent, options)
    after = recovering.finish(change, recovery, examples, options)
    if options.structure == "weights":
        say(_zeros(after))
    recovering.say_times(parent, after, examples, options.timed_batch)
    return 0


def _add_channel_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("channels")
    group.add_argument("--target", metavar="WHAT", help="flops, parameters, latency (measured), or ratio (flops)")
    group.add_argument("--left", type=float, metavar="SHARE", help="what is to be left of the target (0.5)")
    group.add_argument("--importance", metavar="NAME", help="magnitude or taylor (magnitude)")
    group.add_argument("--multiple", type=int, metavar="N", help="widths are multiples of this (8)")
    group.add_argument("--least", type=float, metavar="SHARE", help="of a layer's channels that stays (0.1)")
    group.add_argument("--scan-examples", type=int, metavar="N", help="held-out examples to scan with (1000)")
    group.add_argument(
        "--scan", type=Path, metavar="FILE", help="read the scan from here, or write it if there is none"
    )
    group.add_argument(
        "--timed-batch", type=int, default=16, metavar="N", help="examples in a timed batch (%(default)s)"
    )


def _add_weight_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weights")
    group.add_argument("--sparsity", type=float, default=0.8, metavar="SHARE", help="of zeros (%(default)s)")
    group.add_argument(
        "--scope", choices=("global", "layerwise"), default="global",
        help="compare all weights with one another, or those of each layer (%(default)s)",
    )  # fmt: skip


def _weights(parent: Network, options: argparse.Namespace) -> recovering.Change:
    from offramp_compression.pruning.masks import prune_weights

    pruned = prune_weights(parent, options.sparsity, options.scope, options.keep)
    return recovering.Change(parent, pruned.network, pruned.masks)


def _zeros(network: Network) -> str:
    """How many there are in what was written, by layer and in all."""
    from offramp_compression.pruning.masks import Zeros, zeros_by_layer

    layers = zeros_by_layer(network.module)
    total = Zeros(sum(each.zeros for each in layers.values()), sum(each.weights for each in layers.values()))
    rows = [
        (name, f"{each.weights:,}", f"{each.zeros:,}", f"{100 * each.zeros / each.weights:.1f}")
        for name, each in {**layers, "all": total}.items()
    ]
    return table(("layer", "weights", "zeros", "zeros %"), rows, right=(1, 2, 3))


def _channels(parent: Network, examples: learning.Examples, options: argparse.Namespace) -> recovering.Change:
    from offramp_compression.pruning.plan import ChannelPruning, prune_channels
    from offramp_compression.pruning.sensitivity import Scan

    if examples.validation is None:
        raise ConfigurationError("--hold-out 0 leaves nothing to measure on; hold some of the examples out")
    names = ("target", "left", "importance", "multiple", "least", "scan_examples")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = learning.from_options(
        ChannelPruning, {**given, "keep": options.keep, "batch_size": options.timed_batch, "seed": options.seed}
    )
    known = Scan.load(options.scan) if options.scan and options.scan.exists() else None
    pruned = prune_channels(
        parent, examples.train, examples.validation, settings, scanned=known, progress=_say_point
    )  # fmt: skip
    if pruned.scan and options.scan and not known:
        pruned.scan.save(options.scan)
    say(_outcome(pruned))
    return recovering.Change(parent, pruned.network)


def _say_point(name: str, point: Point) -> None:
    say(f"scan: {name} with {point.stay} left: accuracy {point.accuracy:.4f}, loss {point.loss:.4f}")


def _outcome(pruned: Pruned) -> str:
    """What went, what stayed, and what had to stay."""
    rows = [
        (group.name, str(group.size), str(pruned.stay.get(group.name, group.size)), _felt(pruned.scan, group.name))
        for group in pruned.channels.groups
    ]
    fixed = [f"{name} stays as it is: {reason}" for name, reason in pruned.channels.fixed.items()]
    shown = table(("group of channels", "before", "after", "scan: left:accuracy"), rows, right=(1, 2))
    return "\n".join([shown, *fixed])


def _felt(scan: Scan | None, name: str) -> str:
    return "" if scan is None else "  ".join(f"{point.stay}:{point.accuracy:.3f}" for point in scan.curves[name])
