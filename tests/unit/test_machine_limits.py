"""Cores, memory and NUMA nodes are what the container has, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from machine_fakes import V1_MOUNTS, v1_machine, v2_machine, write_machine
from offramp_server.machine.cgroups import V2, groups
from offramp_server.machine.cores import read_cores, usable_cores
from offramp_server.machine.memory import read_memory
from offramp_server.machine.numa import Node, parse_cpu_list, read_nodes

EIGHT = frozenset(range(8))
GIB = 2**30
MEMINFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 12 kB\nMemAvailable: {32 * GIB // 1024} kB\n"


def test_without_control_groups_every_core_of_the_affinity_is_usable(tmp_path: Path) -> None:
    assert read_cores(tmp_path, frozenset({1, 5, 6})).usable == 3


def test_the_real_machine_offers_no_more_cores_than_this_process_may_run_on() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "usable"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("50000 100000", 1),  # There has to be one.
        ("150000 100000", 1),  # A second thread would be paused half of the time.
        ("350000 100000", 3),
        ("290000 100000", 3),  # Nearly three.
        ("25000 10000", 2),  # Another period.
        ("1600000 100000", 8),
        ("nonsense", 8),
    ],
)
def test_a_quota_of_version_2_is_rounded_so_that_threads_are_hardly_ever_paused(
    tmp_path: Path, limit: str, usable: int
) -> None:
    root = v2_machine(tmp_path, "/", {"cpu.max": limit + "\n"})
    assert read_cores(root, EIGHT).usable == usable


def test_the_narrowest_quota_of_the_groups_above_holds(tmp_path: Path) -> None:
    files = {"kube/pod/box/cpu.max": "max 100000", "kube/pod/cpu.max": "200000 100000", "kube/cpu.max": "400000 100000"}
    cores = read_cores(v2_machine(tmp_path, "/kube/pod/box", files), EIGHT)
    assert (cores.quota, cores.usable) == (2.0, 2)


def test_a_quota_beside_the_own_group_is_none_of_our_business(tmp_path: Path) -> None:
    root = v2_machine(tmp_path, "/kube/ours", {"kube/other/cpu.max": "100000 100000"})
    assert read_cores(root, EIGHT).quota is None


@pytest.mark.parametrize(("quota", "usable"), [("-1", 8), ("300000", 3)])
def test_a_quota_of_version_1_counts_as_well(tmp_path: Path, quota: str, usable: int) -> None:
    files = {"cpu,cpuacct/box/cpu.cfs_quota_us": quota, "cpu,cpuacct/box/cpu.cfs_period_us": "100000"}
    assert read_cores(v1_machine(tmp_path, "/box", files), EIGHT).usable == usable


def test_a_container_that_is_told_its_path_on_the_host_finds_its_group_at_the_mount(tmp_path: Path) -> None:
    mounts = V1_MOUNTS.replace("0:29 / ", "0:29 /docker/abc ").replace("0:30 / ", "0:30 /docker/abc ")
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    root = v1_machine(tmp_path, "/docker/abc", files, mounts)
    assert read_cores(root, EIGHT).quota == 2.0
    assert groups("cpu", root) == [root / "sys/fs/cgroup/cpu,cpuacct"]


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    mount = "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n"
    root = write_machine(
        tmp_path,
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mount, "my groups/cpu.max": "100000 100000"},
    )
    assert groups(V2, root) == [root / "my groups"]


def test_memory_without_limits_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    memory = read_memory(write_machine(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (memory.total, memory.limit, memory.available) == (64 * GIB, None, 32 * GIB)


def test_memory_is_limited_by_the_group_and_page_cache_does_not_count_as_taken(tmp_path: Path) -> None:
    files = {
        "box/memory.max": str(8 * GIB),
        "box/memory.current": str(5 * GIB),
        "box/memory.stat": f"anon 17\ninactive_file {2 * GIB}\n",
        "memory.max": "max",
    }
    root = write_machine(v2_machine(tmp_path, "/box", files), {"proc/meminfo": MEMINFO})
    memory = read_memory(root)
    assert (memory.limit, memory.available) == (8 * GIB, 5 * GIB)


def test_the_number_that_means_no_limit_in_version_1_is_no_limit(tmp_path: Path) -> None:
    files = {
        "memory/box/memory.limit_in_bytes": "9223372036854771712",
        "memory/box/memory.usage_in_bytes": str(GIB),
    }
    root = write_machine(v1_machine(tmp_path, "/box", files), {"proc/meminfo": MEMINFO})
    assert read_memory(root).limit is None


def test_a_limit_of_version_1_counts_as_well(tmp_path: Path) -> None:
    files = {
        "memory/box/memory.limit_in_bytes": str(2 * GIB),
        "memory/box/memory.usage_in_bytes": str(GIB),
        "memory/box/memory.stat": f"cache 1\ntotal_inactive_file {GIB // 2}\n",
    }
    root = write_machine(v1_machine(tmp_path, "/box", files), {"proc/meminfo": MEMINFO})
    assert read_memory(root).available == 2 * GIB - GIB // 2


def test_memory_that_nothing_tells_of_is_unknown(tmp_path: Path) -> None:
    memory = read_memory(tmp_path)
    assert (memory.total, memory.limit, memory.available) == (None, None, None)


def test_nodes_have_the_processors_that_the_affinity_leaves_them(tmp_path: Path) -> None:
    nodes = {"node0": "0-3,8-11\n", "node1": "4-7,12-15\n", "node10": "16\n", "node2": "\n"}
    root = write_machine(tmp_path, {f"sys/devices/system/node/{name}/cpulist": cpus for name, cpus in nodes.items()})
    assert read_nodes(root, frozenset({1, 2, 5, 9, 16})) == (Node(0, (1, 2, 9)), Node(1, (5,)), Node(10, (16,)))
    assert read_nodes(root, frozenset({4})) == (Node(1, (4,)),)


def test_a_machine_that_says_nothing_of_nodes_is_one(tmp_path: Path) -> None:
    assert read_nodes(tmp_path, frozenset({3, 1})) == (Node(0, (1, 3)),)


def test_lists_of_processors_are_read_as_the_kernel_writes_them() -> None:
    assert parse_cpu_list("0-2,5,7-7\n") == {0, 1, 2, 5, 7}
    assert parse_cpu_list("\n") == frozenset()
