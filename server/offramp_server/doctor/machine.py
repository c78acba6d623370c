"""Cores, memory and GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from offramp_server.doctor.section import Section, gibibytes
from offramp_server.machine.cgroups import ROOT
from offramp_server.machine.cores import Cores, read_cores
from offramp_server.machine.identity import describe_device
from offramp_server.machine.memory import Memory, read_memory
from offramp_server.machine.numa import Node, read_nodes
from offramp_server.machine.nvml import GpuReading, Library, NvmlUnavailable, open_nvml


def machine(root: Path = ROOT, affinity: frozenset[int] | None = None) -> Section:
    cores, memory = read_cores(root, affinity), read_memory(root)
    nodes = read_nodes(root, cores.affinity)
    cpu = describe_device("cpu", root=root).name
    lines = (("cpu", cpu), ("cores", _cores(cores)), ("memory", _memory(memory)), ("numa", _nodes(nodes)))
    facts = {
        "cpu": cpu,
        "cores": {
            "machine": cores.machine,
            "affinity": sorted(cores.affinity),
            "quota": cores.quota,
            "usable": cores.usable,
        },
        "memory": {f"{name}_bytes": size for name, size in asdict(memory).items()},
        "numa_nodes": {str(node.number): list(node.cpus) for node in nodes},
    }
    return Section("machine", lines, facts, warnings=_torn_quota(cores))


def _cores(cores: Cores) -> str:
    quota = "no quota" if cores.quota is None else f"a quota of {cores.quota:g}"
    return f"{cores.usable} usable: {cores.machine} there, {len(cores.affinity)} by affinity, {quota}"


def _memory(memory: Memory) -> str:
    limit = "no limit" if memory.limit is None else f"a limit of {gibibytes(memory.limit)}"
    return f"{gibibytes(memory.available)} available of {gibibytes(memory.total)}, {limit}"


def _nodes(nodes: tuple[Node, ...]) -> str:
    if len(nodes) == 1:
        return "1 node: workers are not pinned"
    return f"{len(nodes)} nodes with {', '.join(str(len(node.cpus)) for node in nodes)} cores: workers stay on one each"


def _torn_quota(cores: Cores) -> tuple[str, ...]:
    if cores.quota is None or cores.quota >= 1:
        return ()
    return (
        f"the quota of {cores.quota:g} cores is less than one: every thread is paused for part of the time; "
        "a limit of at least 1 would be right",
    )


def gpus(library: Library | None = None, environment: Mapping[str, str] | None = None) -> Section:
    """None is nothing wrong: models then run on the CPU."""
    try:
        with open_nvml(library, environment) as opened:
            readings = opened.readings()
    except NvmlUnavailable as error:
        return Section("gpus", (("none", str(error)),), {"devices": [], "reason": str(error)})
    if not readings:
        reason = "the driver is there, but CUDA_VISIBLE_DEVICES or the machine has no device"
        return Section("gpus", (("none", reason),), {"devices": [], "reason": reason})
    lines = tuple((reading.gpu.device, _gpu(reading)) for reading in readings)
    driver = readings[0].gpu.driver
    return Section("gpus", (("driver", driver), *lines), {"driver": driver, "devices": [asdict(r) for r in readings]})


def _gpu(reading: GpuReading) -> str:
    memory = f"{gibibytes(reading.memory_used)} of {gibibytes(reading.memory_total)} in use"
    return f"{reading.gpu.name}, compute capability {reading.gpu.compute_capability or 'unknown'}, {memory}"
