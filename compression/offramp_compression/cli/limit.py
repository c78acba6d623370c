"""`--limit`: a few examples of many, to see whether a command runs before it runs for an hour."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_limit_option(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--limit", type=int, metavar="N",
        help="take so many examples of a part, some of every class, to see whether a command runs (all)",
    )  # fmt: skip


def limited(labels: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """The positions of `limit` examples, or of all without one, in their order: of every class its share, drawn by
    `seed`, and at least one. `labels` are those of all examples, [N].

    Raises ConfigurationError for a limit that does not reach for all classes.
    """
    import numpy as np

    if limit is None:
        return np.arange(len(labels))
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if limit < len(classes):
        raise ConfigurationError(f"--limit {limit}: there are {len(classes)} classes; expected at least one of each")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # How much of its class has come before: the first of a class come before any second, then all in proportion.
    before = np.empty(len(labels))
    for label, count in enumerate(counts):
        before[shuffled[members[shuffled] == label]] = np.arange(count) / count
    return np.sort(shuffled[np.argsort(before[shuffled], kind="stable")[:limit]])
