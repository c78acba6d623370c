"""Makes the drivers of C++ and grpc-js ready to run, once for each version of their sources, outside the repository.

Raises Missing with the reason where this machine lacks what that takes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

_SOURCES = Path(__file__).parent / "drivers"
_PACKAGES = ("grpc++", "protobuf")
# Of a compiler, and of a download.
_SECONDS = 300


class Missing(Exception):
    """A tool or a library is not there."""


def cpp_driver() -> list[str]:
    """The command that runs it."""
    for tool in ("pkg-config", "g++"):
        _demand(tool)
    if subprocess.run(["pkg-config", "--exists", *_PACKAGES], check=False).returncode:
        raise Missing("pkg-config knows no grpc++ (Debian: libgrpc++-dev)")
    flags = _output(["pkg-config", "--cflags", "--libs", *_PACKAGES])
    versions = _output(["pkg-config", "--modversion", *_PACKAGES])
    source = _SOURCES / "cpp" / "client.cpp"

    def build(folder: Path) -> None:
        command = ["g++", "-std=c++17", "-O1", "-o", str(folder / "client"), str(source), *shlex.split(flags)]
        subprocess.run(command, check=True, timeout=_SECONDS)

    return [str(_made("cpp", [source], flags + versions, build) / "client")]


def node_driver() -> list[str]:
    """The command that runs it."""
    for tool in ("node", "npm"):
        _demand(tool)
    folder = _SOURCES / "node"
    files = [folder / name for name in ("package.json", "package-lock.json", "client.js")]

    def build(made: Path) -> None:
        for file in files:
            shutil.copy(file, made)
        # The packages' scripts are not run: none of them is needed.
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(npm, cwd=made, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise Missing(f"npm ci failed: {done.stderr.strip()[-300:]}")

    return ["node", str(_made("node", files, "", build) / "client.js")]


def _made(name: str, sources: list[Path], more: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled, now or earlier, from the same sources."""
    digest = hashlib.sha256(more.encode())
    for source in sources:
        digest.update(source.read_bytes())
    made = _cache() / f"{name}-{digest.hexdigest()[:16]}"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            ready = Path(folder, "ready")
            ready.mkdir()
            build(ready)
            try:
                # Whole or not at all.
                ready.rename(made)
            except OSError:
                # Another run may have been faster.
                if not made.exists():
                    raise
    return made


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offramp" / "interop"


def _demand(tool: str) -> None:
    if shutil.which(tool) is None:
        raise Missing(f"there is no {tool}")


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
