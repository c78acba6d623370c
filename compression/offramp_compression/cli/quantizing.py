"""What the commands about quantisation share."""

from __future__ import annotations

import argparse

_RANGES = {"auto": None, "yes": True, "no": False}


def add_range_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--reduce-range", choices=tuple(_RANGES), default="auto",
        help="weights of 7 bits, for x86 processors without VNNI; auto looks at this machine's (%(default)s)",
    )  # fmt: skip


def reduce_range(options: argparse.Namespace) -> bool:
    from offramp_compression.quantization.processor import needs_reduced_range

    chosen = _RANGES[options.reduce_range]
    return needs_reduced_range() if chosen is None else chosen
