"""Zip archives from strangers: opened only if every entry is exactly what it seems to be.

torch writes its archives uncompressed, so whatever is compressed, encrypted, doubled, larger than the file that holds
it, or named like a path out of the archive was not written by torch.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from offramp_common.errors import LoadError

_MAX_ENTRIES = 100_000
_ENCRYPTED = 0x1
_PICKLE_START = b"\x80"
# What zipfile raises for damaged input, beyond its own error.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OverflowError, ValueError)


class ZipArchive:
    """The entries of one archive, named without the folder that they all share."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read the directory of the archive. Raises LoadError where it cannot be trusted."""
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(1) == _PICKLE_START:
            raise LoadError("it is a pickle, which can execute code; write it with torch.export.save")
        with _damage_named():
            self._zip = zipfile.ZipFile(file)
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        _check_names([entry.filename for entry in entries])
        for entry in entries:
            _check_entry(entry)
        # zipfile accepts anything in front of an archive, and so takes an archive within a truncated one for the whole.
        if min(entry.header_offset for entry in entries) != 0:
            raise LoadError("not a complete zip archive (truncated or damaged?): its first entry is not at its start")
        if sum(entry.file_size for entry in entries) > size:
            raise LoadError("its entries claim more bytes than the file has")
        self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}

    def names(self) -> list[str]:
        return list(self._entries)

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """One entry, its checksum verified. Raises LoadError."""
        if name not in self._entries:
            raise LoadError(f'entry "{name}" is missing; write the file with torch.export.save')
        with _damage_named(f'entry "{name}": '):
            return self._zip.read(self._entries[name])


@contextmanager
def _damage_named(entry: str = "") -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise LoadError(f"{entry}not a complete zip archive (truncated or damaged?): {error}") from None


def _check_names(names: list[str]) -> None:
    if not names or len(names) > _MAX_ENTRIES:
        raise LoadError(f"expected 1 to {_MAX_ENTRIES} entries, got {len(names)}")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise LoadError(f'entry "{doubled[0]}" is there twice')
    for name in names:
        parts = name.split("/")
        if "\\" in name or "\0" in name or len(parts) < 2 or {"", ".", ".."} & set(parts):
            raise LoadError(f'entry "{name}" is not a path inside the archive, like "model/data/weights/weight_0"')
    roots = {name.partition("/")[0] for name in names}
    if len(roots) > 1:
        raise LoadError(f"expected one folder that holds everything, got {len(roots)}: {', '.join(sorted(roots)[:3])}")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise LoadError(f'entry "{entry.filename}" is encrypted')
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise LoadError(f'entry "{entry.filename}" is compressed, which torch never does; write it with torch itself')
