"""The root of the domain's errors. A message says what was wrong and what would be right."""

from __future__ import annotations

from typing import ClassVar


class OfframpError(Exception):
    """Root of the tree. `reason` is its name in metrics and logs."""

    reason: ClassVar[str] = "internal"


class ConfigurationError(OfframpError):
    """A file or an option cannot be used as written. Names the file, the key, and what would be right."""


class LoadError(OfframpError):
    """A model cannot be loaded: the file, its engine, or its configuration."""
