"""Resident memory and CPU time of processes, from Linux's /proc. Elsewhere the answer is None."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def resident_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Resident memory of one process in bytes, shared pages included; None if it is gone or /proc is not there."""
    try:
        pages = (proc / str(pid) / "statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int, proc: Path = PROC) -> float | None:
    """CPU time of one process, user and system; None if it is gone or /proc is not there."""
    fields = _stat(pid, proc)
    return None if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_resident_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Resident memory of a process and all its descendants in bytes; None if it is gone or /proc is not there.

    A page that several of them share counts once for each.
    """
    own = resident_bytes(pid, proc)
    if own is None:
        return None
    return own + sum(resident_bytes(child, proc) or 0 for child in descendants(pid, proc))


def descendants(pid: int, proc: Path = PROC) -> list[int]:
    """The processes below this one, nearest first."""
    children = _children_by_parent(proc)
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for parent in level for child in children[parent]]
        found += level
    return found


def _children_by_parent(proc: Path) -> defaultdict[int, list[int]]:
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid in _pids(proc):
        parent = _parent(pid, proc)
        if parent is not None:
            children[parent].append(pid)
    return children


def _pids(proc: Path) -> Iterable[int]:
    try:
        names = os.listdir(proc)
    except OSError:
        return ()
    return (int(name) for name in names if name.isdigit())


def _parent(pid: int, proc: Path) -> int | None:
    fields = _stat(pid, proc)
    return None if fields is None else int(fields[1])


def _stat(pid: int, proc: Path) -> list[str] | None:
    """What follows the command's name, which stands in parentheses and may itself hold spaces and parentheses."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
