"""Is a library there? Asked without importing it."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def lacking(module: str, install: str) -> str:
    """Empty if `module` can be imported; otherwise what is missing, and what installs it."""
    # A name that was blocked (None) counts as missing; one that was imported needs no search.
    found = sys.modules[module] is not None if module in sys.modules else find_spec(module) is not None
    return "" if found else f"{module} is not installed; {install}"
