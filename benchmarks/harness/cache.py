"""Where downloads, environments and exported models are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory(*parts: str) -> Path:
    """Return `$XDG_CACHE_HOME/offramp/bench/PARTS` (default `~/.cache`), created if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base, "offramp", "bench", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
