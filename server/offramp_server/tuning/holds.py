"""Artifacts that this process may still load: nobody deletes what somebody holds, in this process or another."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

# On Windows nothing is tuned.
if sys.platform != "win32":
    import fcntl

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Holds:
    """By path, an open descriptor that carries the lock. May be used by several threads."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        # Two threads that hold the same artifacts at once would open them twice and close them once.
        self._changes = threading.Lock()

    def hold(self, folder: Path) -> None:
        """Until `let_go`. Raises OSError if it is being deleted."""
        with self._changes:
            if folder not in self._descriptors:
                self._descriptors[folder] = _locked(folder)

    def let_go(self, folder: Path) -> None:
        with self._changes:
            descriptor = self._descriptors.pop(folder, None)
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        with self._changes:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors = {}


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, _FOLDER)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # A file system without locks: then nobody deletes either.
            pass
        # It may have been deleted between the two calls, and then the lock is one of a folder that is nowhere.
        os.stat(folder)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def delete_unless_held(folder: Path) -> bool:
    """Whether it is gone. What this process holds itself counts as well."""
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
