"""Keeps the cache of engines within its limit: what was used longest ago goes, unless somebody holds it."""

from __future__ import annotations

import logging
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path

from offramp_server.tuning.holds import delete_unless_held, unheld

log = logging.getLogger("offramp.engines")

# Of a key. Whatever else lies in the folder is not the cache's.
_ENTRY = re.compile(r"[0-9a-f]{40}")


def entries(root: Path) -> list[Path]:
    """What keys there are folders for. Raises OSError."""
    return [each for each in root.iterdir() if _ENTRY.fullmatch(each.name) and each.is_dir() and not each.is_symlink()]


def used_now(decision: Path) -> None:
    """Note it in the file's time of change. Where that cannot be written, nothing is ever evicted either."""
    with suppress(OSError):
        os.utime(decision)


def evict(root: Path, max_bytes: int, decision: str, keep: Path) -> None:
    """Delete entries of `root` with what was built for them until the rest has `max_bytes` at most, or until all others
    are held. `decision` is the name of the file that makes a folder an entry; `keep` stays, and what cannot be deleted.
    Raises OSError."""
    sizes = {each: size_of(each) for each in entries(root)}
    excess = sum(sizes.values()) - max_bytes
    for entry in sorted(sizes, key=lambda each: _last_used(each, decision)):
        if excess <= 0:
            return
        if entry != keep and _deleted(entry, decision):
            excess -= sizes[entry]
            log.warning(
                "engines.max_cache_bytes is %d: what was built for another model and used longest ago is deleted (%s)",
                *(max_bytes, entry),
            )


def _deleted(entry: Path, decision: str) -> bool:
    try:
        return _delete(entry, decision)
    except OSError:
        # It is somebody else's, or another server was faster.
        return False


def _delete(entry: Path, decision: str) -> bool:
    """All of it or nothing: a server that runs its artifacts may want the decision at the next load. Without any, there
    is nothing that says whether a server runs what was decided, and little to be gained."""
    artifacts = [each for each in entry.iterdir() if each.is_dir()]
    if not artifacts:
        return False
    with ExitStack() as locks:
        if not all(locks.enter_context(unheld(each)) for each in artifacts):
            return False
        for file in entry.glob(f"{decision}*"):
            file.unlink(missing_ok=True)
    for each in artifacts:
        delete_unless_held(each)
    with suppress(OSError):
        # Another server may have begun to build here.
        entry.rmdir()
    return True


def _last_used(entry: Path, decision: str) -> float:
    for each in (entry / decision, entry):
        with suppress(OSError):
            return each.stat().st_mtime
    return 0.0


def size_of(folder: Path) -> int:
    """Bytes of all files in it, as far as they can be looked at."""
    size = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                size += os.lstat(os.path.join(parent, file)).st_size
    return size
