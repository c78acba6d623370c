"""Memory that the front end and one worker share: an anonymous file without a name, mapped by both.

It has no name on purpose: nothing that a client can say (Triton's shared-memory extension, for one) reaches it.
"""

from __future__ import annotations

import mmap
import os

INITIAL_BYTES = 1 << 20
# Growing in powers of two keeps the number of remappings small.
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


class Slab:
    """A growable mapping of a memfd. Either side may grow it; the other remaps when it is told of a larger size."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size, flags=mmap.MAP_SHARED | _POPULATE)
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, name: str) -> Slab:
        """Raises OSError."""
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, INITIAL_BYTES)
            return cls(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def require(self, size: int) -> None:
        """Make at least `size` bytes addressable, growing the file if it is smaller. Raises OSError if there is no
        memory for it."""
        if size <= len(self.view):
            return
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, 1 << (size - 1).bit_length())
        # The old mapping lives on for as long as somebody holds a view of it; the pages are the same.
        self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size, flags=mmap.MAP_SHARED | _POPULATE)
        self.view = memoryview(self._map)

    def covers(self, size: int) -> bool:
        """Whether the file, which the other side may have grown, has this many bytes."""
        return size <= os.fstat(self.descriptor).st_size

    def close(self) -> None:
        os.close(self.descriptor)
