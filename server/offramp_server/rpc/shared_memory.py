"""Triton's system shared memory extension: tensors in POSIX shared memory that a client on this machine made.

The server never maps a region. The client owns it and may shorten it at any time, and touching a page that is no
longer there kills the process (SIGBUS); `pread` and `pwrite` on the descriptor answer with a short count instead.
The one copy that this costs is the copy out of the message that it saves.

A client names regions with keys of its own making. Keys are opened below one directory, without following links and
under a prefix that the operator chose; the server's own memory (memfd) has no name that a key could hit. Messages
repeat what the client said and nothing else: a region's name is a capability (CVE-2025-23319, -23320, -23334).

Clients that may infer share one table of regions, as with Triton: switch this on only among clients that trust each
other.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offramp_common.text import quoted
from open_inference.tensor import Buffer

from offramp_server.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
MAX_REGIONS = 256
_KEY = re.compile(r"/?([A-Za-z0-9._-]{1,250})", re.ASCII)


@dataclass(frozen=True, slots=True)
class SharedMemorySettings:
    """Off unless enabled."""

    enabled: bool = False
    # A key has to begin with this. Choose one that no other program on the machine uses.
    key_prefix: str = "/"


class Region:
    """One registered span of a shared memory object. Usable after unregistering for whoever holds it."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int, descriptor: int) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._descriptor = descriptor
        # Closed with the last user and not before: a write that is still to come must never hit a reused descriptor.
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Raises InvalidRequest for a span outside the region, FailedPrecondition if the client shortened it."""
        self._check(offset, size)
        parts: list[bytes] = []
        position, end = self.offset + offset, self.offset + offset + size
        while position < end:
            part = os.pread(self._descriptor, end - position, position)
            if not part:
                raise self._shortened()
            parts.append(part)
            position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: Buffer) -> None:
        """Raises as `read`."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        position = self.offset + offset
        # A write behind the end would lengthen the object again.
        if os.fstat(self._descriptor).st_size < position + len(view):
            raise self._shortened()
        while view:
            try:
                written = os.pwrite(self._descriptor, view, position)
            except OSError as error:
                message = f"shared memory region {quoted(self.name)} cannot be written: {error.strerror}"
                raise FailedPrecondition(message) from None
            view, position = view[written:], position + written

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.byte_size:
            raise InvalidRequest(
                f"shared memory region {quoted(self.name)} has {self.byte_size} bytes, "
                f"expected a span inside it, got offset {offset} and size {size}"
            )

    def _shortened(self) -> FailedPrecondition:
        return FailedPrecondition(f"shared memory region {quoted(self.name)} is shorter than when it was registered")


class SharedMemory:
    """The regions that clients registered, by name."""

    def __init__(self, settings: SharedMemorySettings, directory: Path = DIRECTORY) -> None:
        self._settings = settings
        self._directory = directory
        self._regions: dict[str, Region] = {}

    @property
    def enabled(self) -> bool:
        return self._settings.enabled

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises AlreadyExists, InvalidRequest, NotFound, or FailedPrecondition if this is switched off."""
        self._check_enabled()
        if not name:
            raise InvalidRequest("a shared memory region needs a name")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region {quoted(name)} is registered already; unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            raise FailedPrecondition(f"{MAX_REGIONS} shared memory regions are registered, which is the limit")
        if byte_size <= 0:
            raise InvalidRequest(f"shared memory region {quoted(name)}: expected a size of at least 1 byte, got 0")
        descriptor = self._open(name, key)
        try:
            _check_size(name, descriptor, offset, byte_size)
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = Region(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str) -> None:
        """Forget one region, or all if `name` is empty. Forgetting an unknown one succeeds, as with Triton."""
        self._check_enabled()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str) -> Iterator[Region]:
        """One region, or all if `name` is empty. Raises NotFound."""
        self._check_enabled()
        return iter([self.region(name)] if name else [*self._regions.values()])

    def region(self, name: str) -> Region:
        """Raises NotFound, or FailedPrecondition if this is switched off."""
        self._check_enabled()
        try:
            return self._regions[name]
        except KeyError:
            raise NotFound(f"no shared memory region {quoted(name)} is registered") from None

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise FailedPrecondition("system shared memory is switched off on this server; send tensors in the message")

    def _open(self, name: str, key: str) -> int:
        match = _KEY.fullmatch(key)
        if not match or match[1] in (".", ".."):
            raise InvalidRequest(
                f"shared memory region {quoted(name)}: expected a key of a slash and letters, digits, dots, "
                f"underscores or hyphens, got {quoted(key)}"
            )
        if not f"/{match[1]}".startswith(self._settings.key_prefix):
            raise InvalidRequest(
                f"shared memory region {quoted(name)}: expected a key that begins with "
                f"{quoted(self._settings.key_prefix)}, got {quoted(key)}"
            )
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            return os.open(self._directory / match[1], flags)
        except OSError:
            # Why not is no business of a caller that guesses at keys.
            raise NotFound(f"shared memory region {quoted(name)}: there is no usable object {quoted(key)}") from None


def _check_size(name: str, descriptor: int, offset: int, byte_size: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or offset + byte_size > status.st_size:
        raise InvalidRequest(
            f"shared memory region {quoted(name)}: expected offset plus size to be at most the size of the object, "
            f"got offset {offset} and size {byte_size}"
        )
