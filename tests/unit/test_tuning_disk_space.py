"""A full disk is told from what an engine cannot do, in whatever words."""

from __future__ import annotations

import errno
import os

import pytest
from offramp_server.tuning.disk_space import is_disk_full, says_disk_full


def caused(by: Exception) -> Exception:
    error = RuntimeError("the package could not be written")
    error.__cause__ = by
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_system_says_so_itself_or_below_the_error_of_a_library_or_in_its_words(number: int) -> None:
    error = OSError(number, os.strerror(number))
    assert is_disk_full(error)
    assert is_disk_full(caused(error))
    assert is_disk_full(caused(RuntimeError(f"g++: fatal error: error writing to /tmp/x.s: {os.strerror(number)}")))
    assert says_disk_full(f"ld: final link failed: {os.strerror(number)}")


def test_other_errors_of_the_system_and_of_libraries_are_no_full_disk() -> None:
    assert not is_disk_full(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not is_disk_full(caused(MemoryError()))
