"""Optional dependencies: say which extra to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from offramp_common.errors import OfframpError


class MissingExtra(OfframpError):
    """What was asked for needs packages that are not installed. The message says how to install them."""

    reason = "missing_extra"


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Imports inside belong to an extra: where one is missing, raise MissingExtra with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("offramp"):
            raise
        raise MissingExtra(f"{purpose} needs {error.name}; install it with: pip install 'offramp[{extra}]'") from error
