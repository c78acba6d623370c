"""How many workers compute at once, and with how many threads each, so that together they have a core for each thread.

The processes that carry calls are not counted: without traffic their cores would stand idle.

A worker computes one batch at a time. More threads make that batch faster, more workers compute more of them: on two
cores one worker of two threads answered a lone client in 0.74 of the time (median, measured), and two workers of one
thread each were worth it only under full load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from offramp_server.machine.cgroups import ROOT
from offramp_server.machine.cores import read_cores
from offramp_server.machine.numa import Node, read_nodes

# Of the throughput that the best division of the cores would have, what a faster batch may not cost.
LEAST_THROUGHPUT = 0.6
# Batches that take this much longer are as good as the fastest, and leave cores to other workers.
NEARLY_AS_FAST = 1.05
# Each holds every model of its device and its libraries, 260 MB with torch, and one front end cannot feed more.
MOST_INSTANCES = 16


@dataclass(frozen=True, slots=True)
class Topology:
    """What there is to share out."""

    # Threads that can compute all the time.
    cores: int
    # At least one.
    nodes: tuple[Node, ...]

    @property
    def node_cores(self) -> int:
        """Cores of the smallest node: a worker may be put on any."""
        return min(len(node.cpus) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class CoresPlan:
    instances: int
    # Of each instance.
    threads: int


def read_topology(root: Path = ROOT) -> Topology:
    """Of this process. `root` holds /proc and /sys."""
    cores = read_cores(root)
    return Topology(cores.usable, read_nodes(root, cores.affinity))


def plan(cores: int, seconds_by_threads: Mapping[int, float] | None = None, node_cores: int | None = None) -> CoresPlan:
    """Divide `cores` among the instances of one model; instances x threads is never more than that.

    `seconds_by_threads` are seconds for one batch by threads, as far as they were measured. The fastest batch wins
    unless dividing the cores otherwise would compute far more of them (LEAST_THROUGHPUT); of batches that are about as
    fast the division with the highest throughput. Without measurements: as many threads as there are cores, or as a
    NUMA node has (`node_cores`), since threads that share memory across nodes wait for it.
    """
    most = max(1, min(cores, node_cores or cores))
    measured = {threads: taken for threads, taken in (seconds_by_threads or {}).items() if 1 <= threads <= most}
    if not measured:
        return _plan(cores, most)
    throughput = {threads: _plan(cores, threads).instances / taken for threads, taken in measured.items()}
    worthwhile = [threads for threads in measured if throughput[threads] >= LEAST_THROUGHPUT * max(throughput.values())]
    fastest = min(measured[threads] for threads in worthwhile)
    as_fast = [threads for threads in worthwhile if measured[threads] <= NEARLY_AS_FAST * fastest]
    return _plan(cores, max(as_fast, key=lambda threads: (throughput[threads], -threads)))


def _plan(cores: int, threads: int) -> CoresPlan:
    return CoresPlan(max(1, min(MOST_INSTANCES, cores // threads)), threads)


def threads_of_each(topology: Topology, workers: int) -> int:
    """Threads that each of so many workers can have; 1 if there are more workers than cores."""
    return max(1, min(topology.cores // workers, topology.node_cores))


def least_crowded(nodes: Iterable[Node], taken: Iterable[Node]) -> Node:
    """The node that fewest of `taken` are on, the first of several: workers go round robin, and one that is replaced
    leaves its place to the next."""
    crowd = Counter(node.number for node in taken)
    return min(nodes, key=lambda node: crowd[node.number])
