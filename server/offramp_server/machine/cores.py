"""How many cores this process has: of the machine, of those it may run on, and of the time that its container gets."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from offramp_server.machine.cgroups import ROOT, V2, groups, read_number

# A quota of nearly n cores counts as n if the n-th thread is paused for no more than this share of its time.
TOLERATED_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Cores:
    machine: int
    # Those that the process may run on; taskset and a container's cpuset narrow them.
    affinity: frozenset[int]
    # CPU seconds a second that the control groups allow; None: no limit.
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can compute all the time; at least 1.

        A quota is rounded down, unless the next number exceeds it by less than a tenth. A thread more than the quota
        pays for is not slow but paused, for the rest of each period of typically 0.1 s, and a batch waits for its
        slowest thread: with 4 threads on 3.5 cores all of them stand still for an eighth of the time.
        """
        return max(1, len(self.affinity) if self.quota is None else min(len(self.affinity), _whole(self.quota)))


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    return read_cores(root).usable


def read_cores(root: Path = ROOT, affinity: frozenset[int] | None = None) -> Cores:
    """`root` holds /proc and /sys. `affinity` is this process's unless given."""
    return Cores(os.cpu_count() or 1, own_affinity() if affinity is None else affinity, _quota(root))


def own_affinity() -> frozenset[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _whole(quota: float) -> int:
    above = math.ceil(quota)
    return above if above * (1 - TOLERATED_PAUSE) <= quota else math.floor(quota)


def _quota(root: Path) -> float | None:
    limits = [_limit_v2(folder) for folder in groups(V2, root)] + [_limit_v1(folder) for folder in groups("cpu", root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_v2(folder: Path) -> float | None:
    """cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _limit_v1(folder: Path) -> float | None:
    """A quota of -1 is none."""
    quota, period = (read_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota and period else None
