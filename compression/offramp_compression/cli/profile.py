"""`offramp profile`: where a model's parameters, operations, memory and time are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError
from offramp_common.extras import needs_extra

from offramp_compression.cli.options import (
    EXTRA,
    Commands,
    add_data_options,
    add_run_options,
    open_data,
    open_model,
    prepare,
    say,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from offramp_compression.profiling.subject import Subject

DESCRIPTION = """\
Run a model file (.safetensors) or an exported program (.pt2) on one batch and say
for each layer what it weighs, computes, returns and takes, which layers dominate,
and which can be pruned. Times are torch.profiler's in eager mode.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "profile",
        help="see what each layer of a model costs",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model file (.safetensors) or a .pt2")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="import this package if a model file says that its code builds the network; may be repeated",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="examples in the batch (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="batches to average over (%(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write what happened when, for ui.perfetto.dev")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write event files here")
    parser.add_argument(
        "--shape", type=_shape, action="append", metavar="N,N,N",
        help="without --data: one example's shape for each input, which is then random, such as 1,28,28",
    )  # fmt: skip
    add_data_options(parser, required=False)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp profile"):
        from offramp_compression.evaluation.load import remark
        from offramp_compression.profiling import report
        from offramp_compression.profiling.profile import profile
    if min(options.batch, options.repeats) < 1:
        raise ConfigurationError("--batch and --repeats: expected at least 1")
    device = prepare(options)
    inputs = _inputs(options)
    subject, fixed = _open(options, inputs, device)
    found = profile(subject, tuple(each.to(device) for each in inputs), options.repeats)
    say(report.text(found, fixed))
    if about := remark(found.processor_share):
        warn(about)
    if options.trace:
        report.write_trace(found, options.trace)
        say(f"{options.trace} opens in ui.perfetto.dev and chrome://tracing")
    if options.tensorboard:
        report.write_events(found, options.tensorboard, options.model.name, fixed)
        say(f"tensorboard --logdir {options.tensorboard} shows it as pictures")
    return 0


def _open(
    options: argparse.Namespace, inputs: tuple[torch.Tensor, ...], device: torch.device
) -> tuple[Subject, Mapping[str, str] | None]:
    """What to profile, and, of a module, which layers cannot be pruned and why."""
    from offramp_compression.profiling.subject import ModuleSubject, open_program
    from offramp_compression.pruning.groups import find_channels

    if options.model.suffix == ".pt2":
        return open_program(options.model), None
    module = open_model(options).module
    return ModuleSubject(module.to(device)), find_channels(module, tuple(each.to(device) for each in inputs)).fixed


def _inputs(options: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    import numpy as np
    import torch

    from offramp_compression.data.dataset import tensors

    if (options.data is None) == (options.shape is None):
        raise ConfigurationError(
            "give either --data, to run the model on real examples, or --shape, on random ones: --shape 1,28,28"
        )
    if options.shape:
        return tuple(torch.rand(options.batch, *shape) for shape in options.shape)
    data = open_data(options)
    return tensors(data, np.arange(options.batch) % len(data))


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of at least 1, such as 1,28,28")
    return sizes
