"""Where the models of one device run: in how many workers, with how many threads, and near which memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from offramp_server.machine.numa import Node
from offramp_server.machine.plan import CoresPlan, Topology, least_crowded, plan, threads_of_each
from offramp_server.model_spec import EngineSettings, ModelSpec

# Of a CoresPlan: each worker gets an equal share of the cores.
SHARED = 0

log = logging.getLogger("offramp.workers")


class Placing:
    """Shares out the cores of `topology` among the workers of `device`."""

    def __init__(self, device: str, topology: Topology) -> None:
        self._device = device
        self._topology = topology
        self._nodes: dict[str, Node] = {}

    def wanted(self, engine: EngineSettings, seconds_by_threads: Mapping[int, float] | None) -> CoresPlan:
        """What `[engine]` asks for, with what it leaves to the server filled in; threads may still be SHARED."""
        if engine.instances:
            return CoresPlan(engine.instances, engine.threads or SHARED)
        if self._device != "cpu":
            # A device runs one batch at a time; further ones wait in its queue, and not in its memory.
            return CoresPlan(1, engine.threads or SHARED)
        cores, node_cores = self._topology.cores, self._topology.node_cores
        if engine.threads:
            return CoresPlan(max(1, cores // engine.threads), engine.threads)
        return plan(cores, seconds_by_threads, node_cores)

    def threads(self, engine: EngineSettings, wanted: CoresPlan, workers: int) -> int:
        """Of each of so many workers, for one model: never more than its share, unless model.toml says so."""
        if engine.threads:
            return engine.threads
        share = threads_of_each(self._topology, workers)
        return share if wanted.threads == SHARED else min(share, wanted.threads)

    def threads_by_itself(self, engine: EngineSettings) -> int:
        """Of each worker, if there were no other model on the device and nothing had been measured."""
        wanted = self.wanted(engine, None)
        return self.threads(engine, wanted, wanted.instances)

    def warn_of_too_many(self, spec: ModelSpec, workers: int) -> None:
        threads, cores = spec.engine.threads, self._topology.cores
        if self._device != "cpu" or threads * workers <= cores:
            return
        right = threads_of_each(self._topology, workers)
        advice = f"threads = {right}" if workers <= cores else f"instances = {cores} and threads = 1"
        log.warning(
            'model "%s": %s workers with %s threads each are more than the %s cores there are, and will wait for each '
            "other; %s in [engine] would be right, or threads = 0 to have them shared out",
            *(spec.name, workers, threads, cores, advice),
        )

    def cpus(self, worker: str, others: Iterable[str]) -> tuple[int, ...]:
        """The processors that a new worker is to stay on; none: wherever it likes. `others` are the workers there are.

        On one node, and on a device of its own, nothing is gained by that."""
        nodes = self._topology.nodes
        if self._device != "cpu" or len(nodes) < 2:
            return ()
        self._nodes = {name: self._nodes[name] for name in others if name in self._nodes}
        self._nodes[worker] = least_crowded(nodes, self._nodes.values())
        return self._nodes[worker].cpus
