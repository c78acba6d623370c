"""How much memory this process may still take, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offramp_server.machine.cgroups import ROOT, V2, groups, read_number


@dataclass(frozen=True, slots=True)
class Memory:
    # Of the machine; None where /proc/meminfo cannot be read.
    total: int | None
    # The narrowest limit of the control groups; None: there is none.
    limit: int | None
    # What can be taken before the machine swaps or the container is killed; None: unknown.
    available: int | None


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of control groups calls its files, and page cache in memory.stat."""

    limit: str
    usage: str
    cache: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def read_memory(root: Path = ROOT) -> Memory:
    """`root` holds /proc and /sys."""
    machine = _pairs(root / "proc/meminfo")
    total, available = (_bytes(machine.get(key)) for key in ("MemTotal:", "MemAvailable:"))
    limits = [limit for limit in _limits(root) if total is None or limit[0] < total]
    left = [] if available is None else [available]
    left += [max(0, limit - used) for limit, used in limits]
    return Memory(total, min((limit for limit, _ in limits), default=None), min(left, default=None))


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, memory that cannot be let go of) of each group that has a limit. Version 1 says "none" by a number
    larger than any machine."""
    found = []
    for files, controller in ((_V2, V2), (_V1, "memory")):
        for folder in groups(controller, root):
            limit = read_number(folder / files.limit)
            if limit is not None:
                # File pages that were not touched lately are given up before anybody is killed.
                cache = int(_pairs(folder / "memory.stat").get(files.cache, "0"))
                found.append((limit, max(0, (read_number(folder / files.usage) or 0) - cache)))
    return found


def _pairs(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {words[0]: words[1] for words in map(str.split, lines) if len(words) > 1}


def _bytes(kibibytes: str | None) -> int | None:
    return None if kibibytes is None else int(kibibytes) * 1024
