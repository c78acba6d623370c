"""Versions appear in a model repository whole or not at all, whatever ends the program that writes them.

Everything is made in a hidden folder of the repository, which servers leave alone, and put in its place by one rename.
A new version changes two things, a folder and `model.toml`, so the whole model's folder is replaced: one that shares
the files of the old versions is built beside it, and the two names are exchanged (renameat2, Linux 3.15).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offramp_common.text import quoted

from offramp_compression.errors import ExportError
from offramp_compression.export.manifest import MANIFEST, update_line

MODEL_TOML = "model.toml"
ROUTE_TOML = "route.toml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LARGEST_VERSION = 9_999_999_999
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV)

# Writes the text of model.toml, given the one that is there, if any.
RenderSettings = Callable[[Path | None], str]


@dataclass(frozen=True, slots=True)
class Staging:
    """A version that is not yet visible: fill `version`, then `install` it."""

    repository: Path
    scratch: Path

    @property
    def version(self) -> Path:
        return self.scratch / "version"


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Staging]:
    """A hidden place in `repository`, which is created if need be and of which nothing stays.

    A program that is killed leaves a hidden folder `.building-*` behind, which may be deleted. Raises ExportError if
    the repository cannot be written to.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=repository, prefix=".building-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ExportError(f"the repository {repository} cannot be written to: {error.strerror}") from error
    with scratch as folder:
        place = Staging(repository, Path(folder))
        place.version.mkdir()
        yield place


def check_target(repository: Path, name: str, version: int | None) -> None:
    """Raise ExportError unless `version` of a model called `name`, or its next version, can be written."""
    if not _NAME.fullmatch(name):
        raise ExportError(
            f'{quoted(name)} cannot be the name of a model; expected at most 128 letters, digits, ".", "_" and "-", '
            f"the first a letter or a digit"
        )
    if version is not None and not 1 <= version <= _LARGEST_VERSION:
        raise ExportError(f"version {version}: expected 1, 2, 3, ...")
    _check_folder(repository / name)
    _version(repository / name, version)


def install(place: Staging, name: str, version: int | None, render: RenderSettings) -> Path:
    """Put the staged version, with what `render` returns as `model.toml`, into the repository; returns its folder.

    `version` None is the one after the highest. Several programs may do this at once; they take turns.
    Raises ExportError if the version is there already or `name` is not a model's.
    """
    final = place.repository / name
    made = place.scratch / "model"
    with _lock(place.repository):
        check_target(place.repository, name, version)
        number = str(_version(final, version))
        if final.exists():
            _add(place.version, final, made, number, render(final / MODEL_TOML))
        else:
            _create(place.version, final, made, number, render(None))
    return final / number


def _create(version: Path, final: Path, made: Path, number: str, settings: str) -> None:
    made.mkdir()
    version.rename(made / number)
    (made / MODEL_TOML).write_text(settings, encoding="utf-8")
    _sync(made)
    made.rename(final)
    _sync_folder(final.parent)


def _add(version: Path, final: Path, made: Path, number: str, settings: str) -> None:
    shutil.copytree(final, made, symlinks=True, copy_function=_link)
    version.rename(made / number)
    # A new file: the old one is shared with the folder that is being served.
    (made / MODEL_TOML).unlink(missing_ok=True)
    (made / MODEL_TOML).write_text(settings, encoding="utf-8")
    _follow_manifest(made, number)
    _sync(made)
    try:
        _exchange(made, final)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _add_in_two_steps(made, final, number)
    _sync_folder(final.parent)


def _add_in_two_steps(made: Path, final: Path, number: str) -> None:
    """For file systems that cannot exchange names. Each step is whole; a program that is killed between them leaves the
    new version with the former settings."""
    (made / number).rename(final / number)
    for file in (MANIFEST, MODEL_TOML):
        if (made / file).is_file():
            (made / file).replace(final / file)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _follow_manifest(made: Path, number: str) -> None:
    """A manifest of the whole model has to know of the version's files, and of the settings."""
    manifest = made / MANIFEST
    if not manifest.is_file():
        return
    text = manifest.read_text(encoding="utf-8")
    manifest.unlink()
    manifest.write_text(text, encoding="utf-8")
    files = [path.relative_to(made).as_posix() for path in (made / number).rglob("*") if path.is_file()]
    for file in (MODEL_TOML, *(file for file in files if not file.endswith(MANIFEST))):
        update_line(manifest, file)


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file; expected a model's folder, or nothing")
    if (folder / ROUTE_TOML).exists():
        raise ExportError(f"{folder} is a route; give the model another name")
    if not (folder / MODEL_TOML).exists() and not _versions(folder):
        raise ExportError(f"{folder} is there and is not a model: it has neither {MODEL_TOML} nor versions")


def _version(folder: Path, wanted: int | None) -> int:
    present = _versions(folder) if folder.exists() else []
    highest = max(present, default=0)
    if wanted is None:
        return highest + 1
    if wanted in present:
        raise ExportError(f"{folder / str(wanted)} exists; leave the version out to write version {highest + 1}")
    return wanted


def _versions(folder: Path) -> list[int]:
    return [int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal()]


@contextlib.contextmanager
def _lock(repository: Path) -> Iterator[None]:
    """Of the folder itself, so that no file is left in it."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    paths = (os.fsencode(one), os.fsencode(other))
    if library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _sync(folder: Path) -> None:
    """Make what lies below outlast a power failure before its name appears."""
    for parent, _, names in os.walk(folder):
        for path in (*(os.path.join(parent, name) for name in names), parent):
            _sync_folder(Path(path))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
