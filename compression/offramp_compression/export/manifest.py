"""`manifest.sha256`, with which the server refuses a version whose files have changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

MANIFEST = "manifest.sha256"


def write_manifest(version: Path) -> None:
    """List the files of a version's folder, as sha256sum does."""
    files = sorted(path for path in version.rglob("*") if path.is_file() and path.name != MANIFEST)
    lines = [f"{_sha256(path)}  {path.relative_to(version).as_posix()}\n" for path in files]
    (version / MANIFEST).write_text("".join(lines), encoding="utf-8")


def update_line(manifest: Path, file: str) -> None:
    """Give one file of a manifest, which lies beside it, its present hash; add it if it is not listed."""
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line[66:].rstrip("\r\n") != file]
    manifest.write_text("".join([*kept, f"{_sha256(manifest.parent / file)}  {file}\n"]), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
