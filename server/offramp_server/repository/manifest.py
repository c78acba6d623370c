"""`manifest.sha256`: what the files of a model have to be, as `sha256sum` writes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from offramp_server.errors import LoadError
from offramp_server.repository.layout import ModelFolder

MANIFEST = "manifest.sha256"

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class FileHashes:
    """sha256 of files, each file read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def sha256(self, path: Path) -> str:
        """In hexadecimal. Raises OSError."""
        if path not in self._known:
            with path.open("rb") as file:
                self._known[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[path]

    def digest(self, path: Path, others: Sequence[Path]) -> str:
        """One for a model file and its external data; of a file alone it is what `sha256sum` prints."""
        if not others:
            return self.sha256(path)
        lines = "".join(f"{self.sha256(file)}  {file.name}\n" for file in (path, *others))
        return hashlib.sha256(lines.encode()).hexdigest()


def verify_manifests(model: ModelFolder, version: Path, hashes: FileHashes) -> None:
    """Compare a version with the manifests in its folder and in the model's, where there are any.

    Raises LoadError for the first file that differs, is missing or is not listed. A manifest of the model's folder may
    also list other versions; they are left alone until they are loaded.
    """
    if (version / MANIFEST).is_file():
        _verify(version, _files(version), hashes)
    if (model.path / MANIFEST).is_file():
        others = {path.name for path in model.versions.values()} - {version.name}
        _verify(model.path, [file for file in _files(model.path) if _top(file) not in others], hashes)


def _verify(folder: Path, present: list[PurePosixPath], hashes: FileHashes) -> None:
    manifest = folder / MANIFEST
    listed = dict(_entries(manifest))
    for file in present:
        if file not in listed:
            raise LoadError(f'{manifest}: does not list "{file}"; add it, or remove the file')
    tops = {_top(file) for file in present}
    for file, expected in listed.items():
        # Of another version, or of one that has been removed.
        if _top(file).isdecimal() and _top(file) not in tops:
            continue
        if file == PurePosixPath(MANIFEST):
            raise LoadError(f"{manifest}: lists itself, and no file can hold its own hash; leave that line out")
        # The manifest of a version may be vouched for as well, but needs no line.
        if file not in present and not (file.name == MANIFEST and (folder / file).is_file()):
            raise LoadError(f'{manifest}: lists "{file}", which is missing')
        actual = hashes.sha256(folder / file)
        if actual != expected:
            raise LoadError(f"{folder / file}: sha256 {actual} differs from {expected} in {manifest}")


def _entries(manifest: Path) -> Iterator[tuple[PurePosixPath, str]]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{manifest}: cannot be read as text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise LoadError(f'{manifest}: line {number}: expected "<sha256>  <file>" as sha256sum writes it')
        file = PurePosixPath(found.group(2))
        if file.is_absolute() or ".." in file.parts:
            raise LoadError(f'{manifest}: line {number}: "{file}" is outside the folder')
        yield file, found.group(1).lower()


def _files(folder: Path) -> list[PurePosixPath]:
    """Everything below, without hidden files and manifests."""
    found = [PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()]
    return [file for file in found if file.name != MANIFEST and not any(part.startswith(".") for part in file.parts)]


def _top(file: PurePosixPath) -> str:
    return file.parts[0] if file.parts else ""
