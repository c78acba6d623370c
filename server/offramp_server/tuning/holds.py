"""Artifacts that this process may still load: nobody deletes what somebody holds, in this process or another."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# On Windows nothing is tuned.
if sys.platform != "win32":
    import fcntl

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(slots=True)
class _Hold:
    # Open for as long as the lock is wanted.
    descriptor: int
    holders: int = 1


class Holds:
    """Counts who holds what. May be used by several threads."""

    def __init__(self) -> None:
        self._holds: dict[Path, _Hold] = {}
        # Two threads that hold the same artifacts at once would open them twice and close them once.
        self._changes = threading.Lock()

    def hold(self, folder: Path) -> None:
        """Until it is let go of as often as it was held. Raises OSError if it is being deleted."""
        with self._changes:
            if folder in self._holds:
                self._holds[folder].holders += 1
            else:
                self._holds[folder] = _Hold(_locked(folder))

    def let_go(self, folder: Path) -> None:
        with self._changes:
            hold = self._holds.get(folder)
            if hold is not None:
                hold.holders -= 1
                if not hold.holders:
                    os.close(self._holds.pop(folder).descriptor)

    def close(self) -> None:
        with self._changes:
            for hold in self._holds.values():
                os.close(hold.descriptor)
            self._holds = {}


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
    """Whether it is gone."""
    with unheld(folder) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
    return free


@contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Whether nobody holds it, this process included; nobody can from then on, until the end."""
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        yield False
        return
    try:
        yield _is_free(descriptor)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
