"""A lock that the kernel takes back when its holder dies, however it dies."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

# On Windows a server is only ever embedded, and nothing is locked.
if sys.platform != "win32":
    import fcntl


class InUse(Exception):
    """Somebody else holds it. `holder` is what that process says of itself, perhaps nothing."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class FileLock:
    """Held from its making until `release`, or the end of the process.

    Lies beside the file that it protects: SQLite keeps POSIX locks on its own, and all of those a process loses as soon
    as it closes any descriptor of that file.
    """

    def __init__(self, path: Path) -> None:
        """Raises InUse, or OSError if the file cannot be made."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _acquire(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(os.pread(self._descriptor, 100, 0).decode(errors="replace").strip()) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
