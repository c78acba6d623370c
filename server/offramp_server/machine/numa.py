"""The machine's NUMA nodes: processors that are near the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offramp_server.machine.cgroups import ROOT
from offramp_server.machine.cores import own_affinity


@dataclass(frozen=True, slots=True)
class Node:
    number: int
    # Numbers of its processors that this process may run on, in ascending order.
    cpus: tuple[int, ...]


def read_nodes(root: Path = ROOT, affinity: frozenset[int] | None = None) -> tuple[Node, ...]:
    """The nodes with processors that this process may run on, at least one. `root` holds /sys; `affinity` is this
    process's unless given."""
    allowed = own_affinity() if affinity is None else affinity
    nodes = (Node(number, tuple(sorted(allowed & cpus))) for number, cpus in _nodes(root))
    # Memory without processors is a node as well.
    found = sorted((node for node in nodes if node.cpus), key=lambda node: node.number)
    return tuple(found) or (Node(0, tuple(sorted(allowed))),)


def _nodes(root: Path) -> Iterator[tuple[int, frozenset[int]]]:
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        try:
            text = (folder / "cpulist").read_text(encoding="ascii")
        except OSError:
            continue
        yield int(folder.name.removeprefix("node")), parse_cpu_list(text)


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format, such as "0-3,8,10-11"; an empty list is no processor."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)
