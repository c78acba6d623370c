"""Whether a failure was for want of disk space, of which there may be more another time."""

from __future__ import annotations

import errno
import os

# A quota that is used up is EDQUOT, which not every system has.
_FULL = tuple(number for number in (errno.ENOSPC, getattr(errno, "EDQUOT", None)) if number is not None)


def is_disk_full(error: BaseException) -> bool:
    """Libraries wrap the system's error into their own, and compilers print its words."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in _FULL) or says_disk_full(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def says_disk_full(text: str) -> bool:
    return any(os.strerror(number) in text for number in _FULL)
