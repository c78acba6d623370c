"""Who may delete artifacts, while several threads and processes find, hold and drop them."""

from __future__ import annotations

import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from offramp_server.tuning.holds import Holds, delete_unless_held


def descriptors_of(folder: Path) -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{descriptor}") == str(folder)
        except OSError:
            continue
    return found


def test_threads_that_hold_the_same_folder_at_once_leave_no_descriptor_open(tmp_path: Path) -> None:
    holds = Holds()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(holds.hold, [tmp_path] * 64))
    assert descriptors_of(tmp_path) == 1
    holds.close()
    assert descriptors_of(tmp_path) == 0


def test_what_is_held_is_not_deleted_and_what_was_let_go_is(tmp_path: Path) -> None:
    folder, holds = tmp_path / "built", Holds()
    folder.mkdir()
    holds.hold(folder)
    assert not delete_unless_held(folder)
    assert folder.is_dir()
    holds.let_go(folder)
    assert delete_unless_held(folder)
    assert not folder.exists()


def test_what_is_being_deleted_cannot_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, holds = tmp_path / "built", Holds()
    folder.mkdir()
    lock = fcntl.flock

    def too_late(descriptor: int, operation: int) -> None:
        shutil.rmtree(folder)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with pytest.raises(FileNotFoundError):
        holds.hold(folder)
    assert descriptors_of(folder) == 0
