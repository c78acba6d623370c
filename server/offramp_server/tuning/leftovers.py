"""Folders that belong to a process: it holds them as long as it lives, and the next one deletes what it leaves."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from offramp_server.tuning.holds import Holds, delete_unless_held
from offramp_server.tuning.threads import undone_if_cancelled

# Somebody who tidies up may come between the making of a folder and the holding of it.
_ATTEMPTS = 5


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """In the folder for temporary files, where leftovers of the same prefix are deleted first. Raises OSError."""
    parent, holds = Path(tempfile.gettempdir()), Holds()
    delete_leftovers(prefix, parent)
    folder = made_and_held(holds, prefix, parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        holds.close()


@asynccontextmanager
async def temporary_folder_beside_the_loop(prefix: str) -> AsyncIterator[Path]:
    """The same, where others must not wait for the disk."""
    opened = temporary_folder(prefix)
    close = functools.partial(opened.__exit__, None, None, None)
    folder = await undone_if_cancelled(opened.__enter__, lambda _: close())
    try:
        yield folder
    finally:
        await asyncio.to_thread(close)


def made_and_held(holds: Holds, prefix: str, parent: Path) -> Path:
    """An empty folder that nobody deletes. Raises OSError."""
    for _ in range(_ATTEMPTS - 1):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError, BlockingIOError):
            holds.hold(folder)
            return folder
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    holds.hold(folder)
    return folder


def delete_leftovers(prefix: str, parent: Path) -> None:
    """Of processes of this user that did not come to delete them."""
    for each in parent.glob(f"{prefix}*"):
        # Another process may delete them as well.
        with suppress(OSError):
            found = each.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                delete_unless_held(each)
