"""CPU time and memory of a server's whole process tree and CPU time of the machine, from /proc (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessStat:
    pid: int
    parent: int
    session: int
    cpu_s: float  # user + system, of the process and of its reaped children


def tree_cpu_seconds(root: int) -> float:
    """Return user + system seconds used so far by process `root` and everything it started.

    Membership is by parentage or by session, so that a child whose parent has gone still counts.
    """
    return sum(stat.cpu_s for stat in tree_stats(root))


def tree_pids(root: int) -> list[int]:
    """Return the ids of `root` and of everything it started that still runs."""
    return [stat.pid for stat in tree_stats(root)]


def tree_stats(root: int) -> list[ProcessStat]:
    """Return `root` and everything it started, as they are now."""
    stats = {stat.pid: stat for stat in all_processes()}
    return [stat for stat in stats.values() if belongs(stat, root, stats)]


def tree_memory_bytes(root: int) -> int:
    """Return the memory of process `root` and everything it started; pages that they share count once (PSS)."""
    return sum(proportional_set_bytes(pid) for pid in tree_pids(root))


def proportional_set_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def machine_busy_seconds() -> float:
    """Return the seconds all cores together have spent on anything but idling and waiting for I/O."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def all_processes() -> list[ProcessStat]:
    found = (read_stat(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [stat for stat in found if stat is not None]


def read_stat(entry: Path) -> ProcessStat | None:
    try:
        text = (entry / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name stands in parentheses and may itself hold blanks and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    ticks = sum(int(field) for field in fields[11:15])
    return ProcessStat(int(entry.name), int(fields[1]), int(fields[3]), ticks / TICKS_PER_SECOND)


def belongs(stat: ProcessStat, root: int, stats: dict[int, ProcessStat]) -> bool:
    current: ProcessStat | None = stat
    while current is not None:
        if root in (current.pid, current.session):
            return True
        current = stats.get(current.parent)
    return False
