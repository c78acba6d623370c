"""Resident memory of a process tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from offramp_server.telemetry.process import descendants, resident_bytes, tree_resident_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# A child that starts a grandchild, says so, and waits until its input closes.
FAMILY = """
import subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
grandchild.stdout.readline()
print(grandchild.pid, flush=True)
sys.stdin.read()
grandchild.communicate(b"\\n")
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.communicate()


def test_the_memory_of_one_process_is_what_psutil_sees() -> None:
    expected = psutil.Process().memory_info().rss
    measured = resident_bytes(os.getpid())
    assert measured is not None
    assert abs(measured - expected) < 4 << 20


def test_a_tree_contains_children_and_grandchildren(family: tuple[int, int]) -> None:
    child, grandchild = family
    assert descendants(child) == [grandchild]
    assert {child, grandchild} <= set(descendants(os.getpid()))


def test_the_memory_of_a_tree_is_that_of_its_processes_together(family: tuple[int, int]) -> None:
    child, grandchild = family
    parts = [resident_bytes(child), resident_bytes(grandchild)]
    assert tree_resident_bytes(child) == pytest.approx(sum(part or 0 for part in parts), rel=0.1)
    assert (tree_resident_bytes(child) or 0) > (parts[0] or 0)


def test_a_process_that_is_gone_has_no_memory(family: tuple[int, int]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert resident_bytes(gone.pid) is None
    assert tree_resident_bytes(gone.pid) is None


def test_a_command_name_with_spaces_and_parentheses_does_not_confuse_the_tree(tmp_path: Path) -> None:
    for pid, parent in ((10, 1), (11, 10)):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_text(f"{pid} (a) b 7 (c) S {parent} 1 1")
        (folder / "statm").write_text("9 2 0 0 0 0 0")
    assert descendants(10, tmp_path) == [11]
    assert tree_resident_bytes(10, tmp_path) == 4 * os.sysconf("SC_PAGE_SIZE")


def test_without_proc_the_answer_is_none(tmp_path: Path) -> None:
    assert tree_resident_bytes(os.getpid(), tmp_path / "absent") is None
    assert descendants(os.getpid(), tmp_path / "absent") == []
