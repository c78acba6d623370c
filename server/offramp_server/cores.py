"""How much of the machine this process has."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
