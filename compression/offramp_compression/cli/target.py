"""Options of the commands that put a model into a repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_compression.cli.options import say

if TYPE_CHECKING:
    from offramp_compression.export.publish import Exported, Target


def add_target_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--repository`, `--name` and what else says where a model goes; see `target`."""
    group = parser.add_argument_group("repository")
    group.add_argument("--repository", type=Path, required=required, metavar="DIR", help="the folder that is served")
    group.add_argument("--name", required=required, help="the model's name there")
    # --format is that of the data.
    group.add_argument("--to", choices=("pt2", "onnx"), default="onnx", help="the file's format (%(default)s)")
    group.add_argument("--version", type=int, help="1, 2, ...; otherwise the one after the highest")
    group.add_argument("--max-batch-size", type=int, metavar="N", help="items in one batch (what is there, or 16)")
    group.add_argument("--engine", default="auto", metavar="NAME", help="[engine] backend of model.toml (%(default)s)")
    group.add_argument("--manifest", action="store_true", help="write manifest.sha256 too")
    group.add_argument(
        "--parity-rows", type=_rows, default=256, metavar="N",
        help="examples on which the file has to answer as the network does (%(default)s)",
    )  # fmt: skip


def target(options: argparse.Namespace) -> Target:
    """Raises ExportError if nothing could be written there."""
    from offramp_compression.export.publish import Target, check

    wanted = Target(
        options.repository, options.name, options.to, options.version, options.max_batch_size, options.engine,
        options.manifest,
    )  # fmt: skip
    check(wanted)
    return wanted


def say_written(exported: Exported) -> None:
    say(f"{exported.folder}: {exported.file.name}, {exported.size_bytes} bytes; {exported.parity}")


def _rows(text: str) -> int:
    rows = int(text)
    if rows < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return rows
