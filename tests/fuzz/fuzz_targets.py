"""What is fuzzed, by name: a module of that name, and a folder of inputs that are kept."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("hpack", "engine", "connection", "h2", "messages", "metadata", "relay", "answers")


class Target(Protocol):
    # How many a step has to choose from.
    OPERATIONS: int

    def check(self, data: bytes) -> None:
        """Raises for an input for which something does not hold."""
        ...


def target_of(name: str) -> Target:
    """Imported when it is asked for: what one does not need is not to be covered by it."""
    return cast("Target", importlib.import_module(f"fuzz_{name}"))
