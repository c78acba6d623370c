"""What several commands take: a model, data, and how to run."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from offramp_common.extras import needs_extra

from offramp_compression.cli.limit import add_limit_option, limited

if TYPE_CHECKING:
    import torch

    from offramp_compression.data.dataset import Dataset
    from offramp_compression.network import Network

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
EXTRA = "compression"


def add_model_option(parser: argparse.ArgumentParser, name: str = "model", words: str = "a model file") -> None:
    """The positional argument MODEL and `--trust`; see `open_model`."""
    parser.add_argument(name, type=Path, metavar=name.upper(), help=f"{words} (.safetensors), or models/NAME[/VERSION]")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="import this package if a model file says that its code builds the network; may be repeated",
    )  # fmt: skip


def add_data_options(parser: argparse.ArgumentParser, *, required: bool = True, part: str = "train") -> None:
    """`--data` and what says how to read it; see `open_data`."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, required=required, metavar="PATH", help="a folder or a file of examples")
    group.add_argument("--part", default=part, help="which part of it (%(default)s)")
    group.add_argument("--format", help="idx, cifar10, image-folder, npz, csv or tsv; otherwise by what is there")
    group.add_argument("--image-size", type=int, metavar="SIDE", help="scale and crop an image folder's pictures")
    group.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json, for text")
    group.add_argument("--max-length", type=int, default=128, help="tokens of a text that count (%(default)s)")
    add_limit_option(group)


def add_out_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=_model_file, required=True, metavar="PATH", help="where to write the model file (.safetensors)"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """`--seed`, `--threads` and `--device`; see `prepare`."""
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    group.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the processor (%(default)s)")
    group.add_argument("--device", default="cpu", help="where to compute, such as cpu or cuda:0 (%(default)s)")


def prepare(options: argparse.Namespace) -> torch.device:
    """Seed torch and set its threads; returns the device that was asked for. Raises ConfigurationError without it."""
    with needs_extra(EXTRA, "this command"):
        from offramp_compression.runtime import prepare

    return prepare(options.seed, options.threads, options.device)


def open_model(options: argparse.Namespace, name: str = "model") -> Network:
    with needs_extra(EXTRA, "reading a model file"):
        from offramp_compression.network_source import open_network

    return open_network(getattr(options, name), trusted=options.trust)


def open_data(options: argparse.Namespace, part: str | None = None, classes: tuple[str, ...] | None = None) -> Dataset:
    """The examples that the options name, or their `part`; texts come as tokens.

    With `classes`, those of a model, labels are counted in their order. Raises DataError if the data have others,
    ConfigurationError for a limit that does not reach for all classes.
    """
    with needs_extra(EXTRA, "reading data"):
        from offramp_compression.data.dataset import aligned
        from offramp_compression.data.sources import open_encoded

    data = open_encoded(
        options.data, part or options.part, options.format,
        tokenizer=options.tokenizer, max_length=options.max_length, image_size=options.image_size,
    )  # fmt: skip
    data = data.take(limited(data.labels, options.limit, options.seed))
    return data if classes is None else aligned(data, classes, str(options.data))


def say(text: str) -> None:
    print(text, flush=True)


def terminal_width() -> int | None:
    """In characters; None where nobody watches, such as in a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def warn(text: str) -> None:
    """What the user should know, and scripts that read stdout should not meet."""
    print(f"offramp: warning: {text}", file=sys.stderr, flush=True)


def _model_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".safetensors":
        raise argparse.ArgumentTypeError(
            f"{text}: a model file is written in the format safetensors; expected a name that ends in .safetensors, "
            f"such as {path.with_suffix('.safetensors').name}"
        )
    return path
